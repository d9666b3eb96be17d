"""Claims from a run's folder to verdicts: what is trained, that nothing is done twice, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.files import sha256_of
from pipeline.command import cli
from pipeline.run.presets import PRESETS, load_preset, override, read_settings
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.studies.claims import arms as arms_module
from pipeline.studies.claims import catalogue, command
from pipeline.studies.claims.arms import SPACER, Arm
from pipeline.studies.claims.catalogue import CLAIMS
from pipeline.studies.claims.command import CLAIM_NAMES, run_claims
from pipeline.studies.claims.config import ClaimsConfig, ReferenceSpec
from pipeline.studies.claims.inputs import claim_inputs, judged_scenes
from pipeline.studies.claims.report import Row, published, render_rows
from pipeline.studies.claims.study import Study
from tests.pipeline.studies.claims.conftest import TINY
from tests.pipeline.studies.claims.test_verdict import interval

VERDICTS = {"confirmed", "not confirmed", "not decidable at this scale"}


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_claims_go_through_and_a_second_call_trains_nothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = run_claims(TINY, run=tiny_run, out=tmp_path, only="likelihood, heads")
    assert figures["arms_run"] == 2
    assert figures["heads"] in VERDICTS
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heads [")]
    assert len(lines) == 2
    report = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["name"] for claim in report["claims"]] == ["likelihood", "heads"]
    likelihood, heads = report["claims"]
    # What the table says is what was measured, scene by scene.
    parts = [json.loads(path.read_text())[0]["kinds"] for path in (tmp_path / "likelihood").glob("*.json")]
    assert len(parts) == 3
    for row in likelihood["rows"]:
        means = [part[row["name"]]["sum"] / part[row["name"]]["count"] for part in parts]
        assert row["measured"]["likelihood"]["value"] == pytest.approx(sum(means) / 3)
    assert sum("Spearman" in note for note in likelihood["notes"]) == 5
    assert likelihood["statements"][0]["statement"].startswith("log is likelier than perturbed 0.25 m")
    realism = {row["name"]: row["measured"]["realism"]["value"] for row in heads["rows"]}
    (first, *_) = heads["statements"]
    expected = realism["spacer beta 0.1, vru"] - realism["one head, vru"]
    assert first["measured"]["value"] == pytest.approx(expected)
    assert first["published"] == pytest.approx(0.044)
    text = (tmp_path / "claims.md").read_text()
    assert "0.729" in text
    assert "Table A1" in text
    for name in ("likelihood", "heads"):
        for kind in ("png", "pdf"):
            assert (tmp_path / "figures" / f"{name}.{kind}").stat().st_size > 1000
    before = stamps(tmp_path)
    assert len(before) == 2
    again = run_claims(TINY, run=tiny_run, out=tmp_path, only="heads")
    assert again["arms_run"] == 0
    assert stamps(tmp_path) == before
    assert again.keys() == figures.keys(), "what an earlier call measured stays on the page"
    with pytest.raises(UserError, match=r"made with other settings \(.*agent_steps 300 -> 400"):
        run_claims(dataclasses.replace(TINY, agent_steps=400), run=tiny_run, out=tmp_path, only="heads")


def test_an_interrupted_arm_goes_on(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    train = arms_module.run_selfplay

    def counted(*arguments: object, **named: object) -> object:
        trained.append(named["out"])
        return train(*arguments, **named)  # type: ignore[arg-type]

    def stop(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arms_module, "run_selfplay", counted)
    with monkeypatch.context() as patch:
        patch.setattr(arms_module, "run_sample", stop)
        with pytest.raises(KeyboardInterrupt):
            run_claims(TINY, run=tiny_run, out=tmp_path, only="selfplay")
    assert len(trained) == 1
    assert not stamps(tmp_path)
    figures = run_claims(TINY, run=tiny_run, out=tmp_path, only="selfplay")
    assert figures["arms_run"] == 2
    assert len(trained) == 2, "the training that had ended was not done again"


def test_references_and_vocabularies_are_trained_and_compared(tiny_run: Path, tmp_path: Path) -> None:
    figures = run_claims(TINY, run=tiny_run, out=tmp_path, only="reference vocabulary")
    assert {figures["reference"], figures["vocabulary"]} <= VERDICTS
    report = {claim["name"]: claim for claim in json.loads((tmp_path / "claims.json").read_text())["claims"]}
    assert {row["name"] for row in report["reference"]["rows"]} == {"micro 1", "the run's own"}
    assert [row["name"] for row in report["vocabulary"]["rows"]] == ["K 20", "K 30"]
    assert all(row["measured"]["reference"]["value"] > 0 for row in report["vocabulary"]["rows"])


def test_baselines_are_tried_when_named(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HR-PPO is anchored to a clone, which is trained once."""
    assert "baselines" not in command._wanted_claims("")
    assert command._wanted_claims("baselines, heads") == ["heads", "baselines"]
    monkeypatch.setattr(catalogue, "VARIANTS", ())
    figures = run_claims(TINY, run=tiny_run, out=tmp_path, only="baselines")
    assert (figures["arms_run"], figures["baselines"] in VERDICTS) == (4, True)
    clone = tmp_path / "references" / "clone" / "policy.ckpt"
    result = json.loads((tmp_path / "arms" / "hr-ppo_0" / "result.json").read_text())
    assert result["recipe"]["anchor"] == sha256_of(clone)


def test_overrides_reach_the_configuration(tiny_run: Path, tmp_path: Path) -> None:
    """Of every arm of every claim: exactly the options it names are other than the base's."""
    study = Study(TINY, claim_inputs(tiny_run, policy=False), tmp_path)
    base = dataclasses.asdict(override(TINY.selfplay, {"agent_steps": TINY.agent_steps}))
    names = set()
    for claim in CLAIMS.values():
        for arm in claim.arms(TINY):
            if arm.reference != "run" or arm.settings:
                continue
            config = dataclasses.asdict(study.trial(arm, 1).config)
            for name, value in arm.overrides.items():
                part = config
                for key in name.split("."):
                    part = part[key]
                assert part == value, (arm.name, name)
            changed = {
                key if not isinstance(value, dict) else f"{key}.{inner}"
                for key, value in config.items()
                for inner in (value if isinstance(value, dict) else [""])
                if (value[inner] if inner else value) != (base[key][inner] if inner else base[key])
            }
            assert changed <= {*arm.overrides, "evaluate_every", "evaluate_rollouts"}
            assert study.trial(arm, 1).seed == 1
            names.add(arm.name)
    assert {"beta 0", "one among replayed", "alpha 0.1", "one head", "vehicles only", "no goal reward"} <= names


def test_arms_of_one_name_are_one_arm() -> None:
    """They share a folder, so they must be the same."""
    found: dict[str, Arm] = {}
    for claim in CLAIMS.values():
        for arm in claim.arms(TINY):
            assert found.setdefault(arm.name, arm) == arm
    assert SPACER.watched


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ppo.betta": 1.0}, r"option ppo.betta: betta is unknown; did you mean beta\?"),
        ({"ppo.beta": "much"}, "ppo.beta is 'much'; expected float"),
        ({"ppo.epochs": 2.5}, "ppo.epochs is 2.5; expected int"),
        ({"policy.per_type": 1}, "expected bool"),
        ({"ppo": 1}, "expected one of its options"),
        ({"worlds.x": 1}, "has no options of its own"),
        ({"ppo.controlled": "nobody"}, "choose one of all"),
    ],
)
def test_wrong_overrides_are_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(SelfPlayConfig(), values)


def test_texts_are_read_as_the_options_type() -> None:
    config = override(
        SelfPlayConfig(),
        {
            "ppo.learning_rate": "3e-4",
            "worlds": "7",
            "tensorboard": "false",
            "device": "cpu",
            "ppo.beta_final": "0.5",
        },
    )
    assert (config.ppo.learning_rate, config.worlds, config.tensorboard) == (3e-4, 7, False)
    assert config.ppo.beta_final == 0.5
    assert Arm("a", {"ppo.beta": 0.2}, "kl_only").config(SelfPlayConfig()).ppo.surrogate_weight == 0
    with pytest.raises(UserError, match="choose one of clone"):
        read_settings("nothing")


def test_what_is_missing_names_its_stage(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        claim_inputs(tmp_path / "none", policy=True)
    copy = tmp_path / "run"
    copy.mkdir()
    with pytest.raises(UserError, match="no finished stage of a run here"):
        claim_inputs(copy, policy=True)
    (copy / "tokenize").symlink_to(tiny_run / "tokenize")
    with pytest.raises(UserError, match=r"reference.ckpt: no output of a finished stage; run `make finetune`"):
        claim_inputs(copy, policy=True)
    (copy / "finetune").symlink_to(tiny_run / "finetune")
    with pytest.raises(UserError, match=r"policy.ckpt: no output of a finished stage; run `make selfplay`"):
        claim_inputs(copy, policy=True)
    assert claim_inputs(copy, policy=False).reference.exists()
    with pytest.raises(UserError, match=r"no such claim, expected some of likelihood.*did you mean heads"):
        run_claims(TINY, run=tiny_run, out=tmp_path, only="head")


def test_wrong_scales_are_one_line() -> None:
    for values, message in (
        ({"references": ["micro"]}, "SIZE:STEPS"),
        ({"references": ["tinier:3"]}, "with a size of micro"),
        ({"levels": [1.0, 0.5]}, "ascending"),
        ({"seeds": 0}, "claims.seeds"),
        ({"vocabularies": [100]}, "two different sizes"),
        ({"sampling_modes": []}, "at least one top_k"),
    ):
        with pytest.raises(UserError, match=message):
            ClaimsConfig(**values)
    assert ReferenceSpec.parse("nano:200+30") == ReferenceSpec("nano", 200, 30)
    assert ReferenceSpec("nano", 200, 30, 100).name == "nano 200+30 K 100"


def test_judged_scenes_are_spread_and_kept(tiny_run: Path, tmp_path: Path) -> None:
    store = tiny_run / "tokenize" / "validation"
    assert judged_scenes(store, 0, tmp_path / "a") == store == judged_scenes(store, 3, tmp_path / "a")
    folder = judged_scenes(store, 1, tmp_path / "a")
    (shard,) = folder.glob("*.parquet")
    before = shard.stat().st_mtime_ns
    judged_scenes(store, 1, tmp_path / "a")
    assert shard.stat().st_mtime_ns == before


def test_presets_are_scales(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every preset's section is understood by the command, and stages do not stumble over it."""
    for name in PRESETS:
        assert "claims" in load_preset(name)
        assert cli.main(["claims", "--preset", name, "--run", "/nowhere"]) == 1
        assert "no such folder" in capsys.readouterr().err
    paper = load_preset("paper")["claims"]
    assert (paper["agent_steps"], paper["seeds"], paper["scenes"]) == (1_000_000_000, 5, 880)


def test_tables_show_the_papers_figures_and_who_has_none() -> None:
    measured = {"realism": interval(0.6, 0.7), "minade": interval(3.0, 5.0), "collision": interval(0.1, 0.2)}
    rows = [Row("a", "all", measured, {"realism": 0.741}), Row("b", "all", {"realism": interval(0.1, 0.3)})]
    assert render_rows(rows) == [
        ["trained", "drawn", "realism", "minADE, m", "collision"],
        ["a", "all", "0.650 [0.600, 0.700] / 0.741", "4.00 [3.00, 5.00]", "0.150"],
        ["b", "all", "0.200 [0.100, 0.300]", "-", "-"],
    ]
    assert render_rows([dataclasses.replace(row, drawn="") for row in rows])[2][:2] == ["b", "0.200 [0.100, 0.300]"]
    assert published("weights", "beta 1")["realism_top1"] == 0.621
    assert published("weights", "beta 2") == {}
    assert set(CLAIM_NAMES) == {"likelihood", *CLAIMS}
