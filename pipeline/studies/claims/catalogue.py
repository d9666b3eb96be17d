"""The claims that are about trained policies: which arms each needs, what it states, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.evaluation.statistics import Interval, difference, mean
from pipeline.studies.claims import figures
from pipeline.studies.claims.arms import (
    ALPHAS,
    ANCHORED,
    BETAS,
    HR_PPO,
    NO_GOAL,
    ONE_HEAD,
    PLAIN,
    PPO,
    SHOWN,
    SPACER,
    VARIANTS,
    VEHICLES,
    Arm,
)
from pipeline.studies.claims.config import ClaimsConfig
from pipeline.studies.claims.report import (
    Report,
    Row,
    Statement,
    above,
    arm_rows,
    below,
    published,
    render_rows,
    within,
)
from pipeline.studies.claims.study import OWN_REFERENCE, Study

# Differences of realism below this count as none: the paper's spread over five seeds.
MARGIN = 0.015


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: by which it is asked for. title, says: in words.
        arms: that it compares. references: that drive themselves for it.
        report: what came of it, once these are done. by_default: tried unless claims are named.
    """

    name: str
    title: str
    says: str
    arms: Callable[[ClaimsConfig], Sequence[Arm]]
    report: Callable[[Study, Claim], Report]
    references: Callable[[ClaimsConfig], Sequence[str]] = lambda config: ()
    by_default: bool = True


CLAIMS: dict[str, Claim] = {}


def _claim(
    name: str, title: str, says: str, arms: Sequence[Arm] | Callable[[ClaimsConfig], Sequence[Arm]], **options: Any
) -> Callable[[Callable[[Study, Claim], Report]], Callable[[Study, Claim], Report]]:
    """Enter a claim into ``CLAIMS`` with the function that reports on it."""

    def enter(report: Callable[[Study, Claim], Report]) -> Callable[[Study, Claim], Report]:
        compared = arms if callable(arms) else lambda config: arms
        CLAIMS[name] = Claim(name, title, says, compared, report, **options)
        return report

    return enter


def _minus(study: Study, first: Arm, second: Arm, field: str = "realism", targets: str = "all") -> Interval:
    return difference(study.table(first, field, targets=targets), study.table(second, field, targets=targets))


def _printed(claim: str, first: str, second: str, field: str = "realism") -> float | None:
    """The paper's difference of two rows."""
    one, other = published(claim, first).get(field), published(claim, second).get(field)
    return None if one is None or other is None else round(one - other, 4)


def _comparison(study: Study, claim: Claim) -> Callable[..., Statement]:
    """Statements that a figure of one arm is higher than that of another, beside the paper's difference."""

    def higher(text: str, first: Arm, second: Arm, field: str = "realism", targets: str = "all") -> Statement:
        printed = _printed(claim.name, first.name, second.name, field)
        return above(text, _minus(study, first, second, field, targets), published=printed)

    return higher


def _told(
    claim: Claim,
    rows: Sequence[Row],
    statements: Sequence[Statement],
    *notes: str,
    figure: Any = None,
    first: str = "trained",
) -> Report:
    """By default with a figure of realism; ``first`` is the title of the table's first column."""
    drawn = {claim.name: figure or figures.forest_figure(rows, "realism")}
    return Report(claim.name, claim.title, claim.says, statements, render_rows(rows, first), rows, notes, drawn)


@_claim(
    "stability",
    "Training with and without the KL",
    "The KL to the reference keeps self-play human-like: without it the policy drifts away, loses its "
    "entropy, and its futures are far from the log.",
    [SPACER, PLAIN],
)
def _stability(study: Study, claim: Claim) -> Report:
    rows = arm_rows(study, claim.name, [SPACER, PLAIN])
    higher = _comparison(study, claim)
    statements = [
        higher("with the KL (beta 0.1) realism is higher than without", SPACER, PLAIN),
        higher("without it, minADE is larger, metres", PLAIN, SPACER, "minade"),
        higher("without it, the policy ends further from the reference, nats of KL", PLAIN, SPACER, "kl"),
        higher("with it, the policy keeps more entropy, nats", SPACER, PLAIN, "entropy"),
    ]
    curves = {arm.name: [result.curve for result in study.results(arm)] for arm in (SPACER, PLAIN)}
    note = f"Realism and minADE of verdicts: {study.sampling_mode}."
    return _told(claim, rows, statements, note, figure=figures.training_figure(curves))


def _several(config: ClaimsConfig) -> tuple[Arm, Arm]:
    """Self-play of all moving agents, and one of them alone, for as many decisions."""
    steps = {**ANCHORED, "agent_steps": config.single_steps}
    worlds = config.selfplay.worlds * config.worlds_of_one
    return (
        Arm("self-play of the moving", {**steps, "ppo.controlled": "moving"}),
        Arm("one among replayed", {**steps, "ppo.controlled": "one", "worlds": worlds}),
    )


@_claim(
    "selfplay",
    "The role of self-play",
    "Learning among others who react is worth more than learning alone among replayed ones.",
    _several,
)
def _selfplay(study: Study, claim: Claim) -> Report:
    several, one = _several(study.config)
    rows = arm_rows(study, claim.name, [several, one])
    statements = [
        above("self-play is more realistic than one agent among replayed ones", _minus(study, several, one)),
        above("the policy of one agent collides more often", _minus(study, one, several, "collision")),
    ]
    note = (
        f"Both learn from {study.config.single_steps} decisions of agents that move, anchored by beta 0.1; all "
        "others replay the log, and with one agent a scene no other reacts to it. All are driven when judged."
    )
    return _told(claim, rows, statements, note)


@_claim(
    "weights",
    "Alpha and beta",
    "A beta of 0.1 is best; rewarding likelihood instead (alpha) gains nothing and ends in one mode.",
    [PLAIN, *ALPHAS, *BETAS, SPACER],
)
def _weights(study: Study, claim: Claim) -> Report:
    arms = [PLAIN, *ALPHAS, BETAS[0], SPACER, BETAS[1]]
    rows = arm_rows(study, claim.name, arms)
    higher = _comparison(study, claim)
    statements = [higher(f"beta 0.1 is better than {arm.name}", SPACER, arm) for arm in (PLAIN, *BETAS)]
    statements += [
        below(
            f"without the KL, {arm.name} gains nothing worth mentioning",
            _minus(study, arm, PLAIN),
            bound=MARGIN,
            published=_printed(claim.name, arm.name, PLAIN.name),
        )
        for arm in ALPHAS
    ]
    statements.append(
        higher("the likelihood reward (alpha 0.1) takes entropy away, nats", PLAIN, ALPHAS[-1], "entropy")
    )
    note = (
        "The paper's alpha is probably worth 0.35 to 0.5 of the same number here, because its logged likelihood is "
        "scaled (docs/spacer.md)."
    )
    return _told(claim, rows, statements, note, figure=figures.sweep_figure(rows, study.sampling_mode))


@_claim(
    "goals",
    "Goals and goal dropout",
    "Once anchored, self-play needs no goals for realism, though they help minADE; hiding some makes up "
    "for their absence when sampled.",
    [SPACER, SHOWN, NO_GOAL, PLAIN, PPO],
)
def _goals(study: Study, claim: Claim) -> Report:
    rows = arm_rows(study, claim.name, [SPACER, SHOWN, NO_GOAL, PLAIN, PPO])
    higher = _comparison(study, claim)
    statements = [
        within(
            "with the KL, the goal's reward makes no difference to realism",
            _minus(study, NO_GOAL, SPACER),
            MARGIN,
            published=_printed(claim.name, NO_GOAL.name, SPACER.name),
        ),
        higher("without the goal's reward, minADE is larger, metres", NO_GOAL, SPACER, "minade"),
        above("with the KL, hiding half of the goals is better than showing all", _minus(study, SPACER, SHOWN)),
        above("without it, too", _minus(study, PLAIN, PPO)),
    ]
    note = "No agent sees a goal when sampled. The last two statements have no figure in the paper."
    return _told(claim, rows, statements, note)


@_claim(
    "heads",
    "An action head for each type",
    "Pedestrians and cyclists need heads of their own.",
    [SPACER, ONE_HEAD],
)
def _heads(study: Study, claim: Claim) -> Report:
    rows = arm_rows(study, claim.name, [SPACER, ONE_HEAD], ("vru",))
    higher = _comparison(study, claim)
    statements = [
        higher(
            "a head for each type is more realistic on pedestrians and cyclists", SPACER, ONE_HEAD, targets="vru"
        ),
        higher("one head for all has a larger minADE on them, metres", ONE_HEAD, SPACER, "minade", "vru"),
    ]
    rows += arm_rows(study, claim.name, [SPACER, ONE_HEAD], ("vehicle", "all"), [study.sampling_mode])
    return _told(claim, rows, statements, "Rows name the targets; all agents are driven.")


@_claim(
    "types",
    "Vehicles alone and all types",
    "Pedestrians and cyclists can be learnt together with vehicles.",
    [SPACER, VEHICLES, PLAIN],
)
def _types(study: Study, claim: Claim) -> Report:
    rows = arm_rows(study, claim.name, [SPACER, VEHICLES, PLAIN], ("vehicle", "vru"), [study.sampling_mode])
    statements = [
        above(
            "driving all types, SPACeR is more realistic on pedestrians and cyclists than plain self-play",
            _minus(study, SPACER, PLAIN, targets="vru"),
            published=_printed(claim.name, f"{SPACER.name}, vru", f"{PLAIN.name}, vru"),
        ),
        above(
            "learning all types costs vehicles at most a margin against learning vehicles alone",
            _minus(study, SPACER, VEHICLES, targets="vehicle"),
            bound=-MARGIN,
        ),
        above(
            "a policy of vehicles alone is less realistic on pedestrians and cyclists",
            _minus(study, SPACER, VEHICLES, targets="vru"),
        ),
    ]
    note = (
        "Everybody is driven when judged, pedestrians and cyclists too by the policy that learnt vehicles alone; "
        "in the paper's Table 1 they replay the log."
    )
    return _told(claim, rows, statements, note)


def _pairs_figure(study: Study, claim: Claim, rows: Sequence[Row]) -> Any:
    return figures.pairs_figure([row for row in rows if row.drawn == study.sampling_mode], claim.name)


def _students(config: ClaimsConfig) -> list[tuple[str, Arm]]:
    """Names of references, the run's own last, with the student of each."""
    names = [spec.name for spec in config.reference_specs]
    return [
        *((name, Arm(f"student of {name}", ANCHORED, reference=name)) for name in names),
        (OWN_REFERENCE, SPACER),
    ]


def _pairs(study: Study, claim: Claim, students: Sequence[tuple[str, Arm]], labels: Sequence[str]) -> list[Row]:
    """Rows of references and of their students."""
    rows = []
    for (name, arm), label in zip(students, labels, strict=True):
        for mode in study.sampling_modes:
            tables = {field: study.table(arm, field, mode) for field in ("realism", "minade", "kl", "entropy")}
            tables["reference"] = study.reference_table(name, "realism", mode)
            theirs = published(claim.name, label) if mode == study.sampling_mode else {}
            measured = {field: mean(table) for field, table in tables.items()}
            rows.append(Row(label, mode, measured, theirs))
    return rows


@_claim(
    "reference",
    "Quality of the reference and of the student",
    "The reference is a soft prior: students of weak references surpass them, and students of strong ones "
    "stay below.",
    lambda config: [arm for _, arm in _students(config)],
    references=lambda config: [name for name, _ in _students(config)],
)
def _reference(study: Study, claim: Claim) -> Report:
    students = _students(study.config)
    quality = {name: float(study.reference_table(name, "realism").mean()) for name, _ in students}
    students = sorted(students, key=lambda pair: quality[pair[0]])
    labels = ["the run's own" if name == OWN_REFERENCE else name for name, _ in students]
    rows = _pairs(study, claim, students, labels)
    own = [study.table(arm, "realism") for _, arm in students]
    theirs = [study.reference_table(name, "realism") for name, _ in students]
    statements = [
        above(
            f"the student of the weakest reference ({labels[0]}) is better than it",
            difference(own[0], theirs[0]),
            published=round(0.729 - 0.636, 3),
        ),
        above(
            f"the strongest reference ({labels[-1]}) is better than its student",
            difference(theirs[-1], own[-1]),
            published=round(0.766 - 0.740, 3),
        ),
        above(
            "students differ less than their references do (strongest minus weakest)",
            mean((theirs[-1] - theirs[0]) - (own[-1] - own[0])),
            published=round((0.766 - 0.636) - (0.740 - 0.729), 3),
        ),
    ]
    # The paper's references have no counterpart here.
    theirs_pairs = ", ".join(
        f"{name} {published(claim.name, name)['reference']:.3f} -> {published(claim.name, name)['realism']:.3f}"
        for name in ("SMART 0.3M", "SMART 1M", "SMART 3M", "CAT-K 0.3M", "CAT-K 1M", "CAT-K 3M")
    )
    notes = (
        "References are in the order of their own realism, measured here.",
        f"The paper's references and students: {theirs_pairs}.",
    )
    return _told(claim, rows, statements, *notes, figure=_pairs_figure(study, claim, rows), first="reference")


def _vocabularies(config: ClaimsConfig) -> list[tuple[str, Arm]]:
    return [
        (spec.name, Arm(f"K {spec.vocabulary}", ANCHORED, reference=spec.name)) for spec in config.vocabulary_specs
    ]


@_claim(
    "vocabulary",
    "Size of the vocabulary",
    "200 tokens are best for the student, though references get better with more.",
    lambda config: [arm for _, arm in _vocabularies(config)],
    references=lambda config: [name for name, _ in _vocabularies(config)],
)
def _vocabulary(study: Study, claim: Claim) -> Report:
    students = _vocabularies(study.config)
    labels = [arm.name for _, arm in students]
    rows = _pairs(study, claim, students, labels)
    sizes = list(study.config.vocabularies)
    best = sizes.index(200) if 200 in sizes else len(sizes) // 2
    higher = _comparison(study, claim)
    statements = [
        higher(f"students with {labels[best]} are better than with {arm.name}", students[best][1], arm)
        for _, arm in students
        if arm.name != labels[best]
    ]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    statements += [
        above(
            f"the reference with {labels[larger]} is better than with {labels[smaller]}",
            difference(
                study.reference_table(students[larger][0], "realism"),
                study.reference_table(students[smaller][0], "realism"),
            ),
            published=_printed(claim.name, labels[larger], labels[smaller], "reference"),
        )
        for smaller, larger in pairwise(order)
    ]
    note = f"Each reference: {study.config.vocabulary_reference}, trained alike but for its tokens."
    return _told(claim, rows, statements, note, figure=_pairs_figure(study, claim, rows), first="tokens a type")


@_claim(
    "baselines",
    "SPACeR, baselines and variants",
    "SPACeR is more realistic than self-play without an anchor and than HR-PPO.",
    lambda config: [SPACER, PLAIN, PPO, HR_PPO, *VARIANTS],
    by_default=False,
)
def _baselines(study: Study, claim: Claim) -> Report:
    rows = arm_rows(study, claim.name, [SPACER, PLAIN, PPO, HR_PPO, *VARIANTS])
    statements = [
        above(f"SPACeR is more realistic than {title}", _minus(study, SPACER, arm))
        for title, arm in (("PPO", PPO), ("PPO with hidden goals", PLAIN), ("HR-PPO", HR_PPO))
    ]
    note = "HR-PPO is anchored to a policy cloned from the log; KL and likelihood are under the run's reference."
    return _told(claim, rows, statements, note)
