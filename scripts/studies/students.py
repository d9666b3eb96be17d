"""How well students of several architectures and views can say what a reference says, on scenes they never saw.

    python scripts/studies/students.py runs/demo --scenes 120 \\
        --student "two layers" --student "GELU" policy.gelu=true --student "ahead" view.ahead_segments=24

The log drives in scenes of the training and the validation split. All students learn the forward KL to the
reference from the same batches of the same states; a fifth of the parked agents is kept. Shown is the KL on the
validation split, of all and of those that move.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from functools import partial
from operator import itemgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from data.scene import Scene, map_tensors
from data.store import SceneStore
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from models.sampling import exact_kl
from pipeline.execution.tables import render_table
from pipeline.run.presets import override
from pipeline.run.run_folder import RunFolder
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.selfplay.rollout import Given, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation, ObservationConfig, feature_sizes
from pipeline.simulator.step import decisions
from pipeline.simulator.world import build_world, stack_worlds

_WORLDS, _BATCH, _RATE, _FINAL = 4, 256, 1e-3, 0.02
_PARKED_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class States:
    """What agents saw, and what the reference said; N states."""

    seen: Observation
    log_reference: Tensor  # [N, K]
    moves: Tensor  # [N] bool

    def rows(self, index: Tensor) -> States:
        """Some of them."""
        return map_tensors(self, itemgetter(index))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with stages up to pretrain")
    parser.add_argument("--scenes", type=int, default=120, help="of the training split")
    parser.add_argument("--held-out", type=int, default=24, help="of the validation split")
    parser.add_argument("--steps", type=int, default=2500, help=f"gradient steps, of {_BATCH} states")
    parser.add_argument("--student", nargs="+", action="append", metavar="NAME OPTION=VALUE", required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = RunFolder.opened(options.run)
    reference = ReferenceAgent.from_checkpoint(run.reference)
    known: dict[ObservationConfig, tuple[States, States]] = {}
    rows = [["student", "parameters", "KL, held out", "of those that move", "KL, training", "CPU s"]]
    for title, *settings in options.student:
        config = override(SelfPlayConfig(), dict(setting.split("=", 1) for setting in settings))
        if config.view not in known:
            known[config.view] = (
                states(reference, scenes_of(run, "training", options.scenes), config.view),
                states(reference, scenes_of(run, "validation", options.held_out), config.view),
            )
        training, held_out = known[config.view]
        started = time.process_time()
        student = taught(config, reference, training, options.steps)
        divergence = divergences(student, held_out)
        figures = divergence.mean(), divergence[held_out.moves].mean(), divergences(student, training).mean()
        size = sum(parameter.numel() for parameter in student.parameters())
        seconds = time.process_time() - started
        rows.append([title, str(size), *(f"{figure:.4f}" for figure in figures), f"{seconds:.0f}"])
        print(render_table(rows), flush=True)


def scenes_of(run: RunFolder, split: str, count: int) -> list[Scene]:
    """Scenes of a split, spread over it."""
    store = SceneStore(run.needed(f"tokenize/{split}"))
    usable = [row for row, info in enumerate(store.infos) if info.simulated <= SelfPlayConfig().max_agents]
    return [store[usable[index * len(usable) // count]] for index in range(min(count, len(usable)))]


def states(reference: ReferenceAgent, scenes: list[Scene], view: ObservationConfig) -> States:
    """States along the log; the same agents for every view."""
    vocabulary, generator = reference.vocabulary, torch.Generator().manual_seed(0)
    scorer = ReferenceScorer(reference, scenes.__getitem__, capacity=_WORLDS)
    nobody = Policy(SelfPlayConfig().policy, feature_sizes(view), vocabulary.ends).eval()
    parts: list[States] = []
    for first in range(0, len(scenes), _WORLDS):
        numbers = range(first, min(first + _WORLDS, len(scenes)))
        built = [build_world(scenes[number], vocabulary, view.listed_segments) for number in numbers]
        world = stack_worlds(built)
        driven = collect(
            nobody,
            Simulator(vocabulary, view),
            world,
            partial(scorer.scores, numbers, world),
            PPOConfig(goal_dropout=1.0),
            torch.zeros(decisions(vocabulary) + 2, *world.types.shape),
            Given(world.log_ids, replay=True),
        )
        assert driven.log_reference is not None
        moves = world.moves[world.exists]
        kept = driven.covered & (moves | (torch.rand(moves.shape, generator=generator) < _PARKED_SHARE))
        every = States(driven.observations, driven.log_reference.flatten(0, 1), moves.expand(kept.shape).flatten())
        parts.append(every.rows(kept.flatten().nonzero().flatten()))
    seen = {name: torch.cat([getattr(part.seen, name) for part in parts]) for name in vars(parts[0].seen)}
    return States(
        Observation(**seen),
        torch.cat([part.log_reference for part in parts]),
        torch.cat([part.moves for part in parts]),
    )


def taught(config: SelfPlayConfig, reference: ReferenceAgent, training: States, steps: int) -> Policy:
    """A student after so many gradient steps."""
    torch.manual_seed(0)
    student = Policy(config.policy, feature_sizes(config.view), reference.vocabulary.ends)
    optimizer = torch.optim.Adam(student.parameters(), lr=_RATE, eps=1e-5)
    order = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - (1 - _FINAL) * step / steps)
        batch = training.rows(torch.randint(len(training.moves), (_BATCH,), generator=order))
        log_policy = act(student, batch.seen)[0].log_softmax(-1)
        optimizer.zero_grad()
        exact_kl(batch.log_reference, log_policy).mean().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        optimizer.step()
    return student.eval()


@torch.no_grad()
def divergences(student: Policy, among: States) -> Tensor:
    """[N] KL(reference || student)."""
    parts = []
    for index in torch.arange(len(among.moves)).split(4096):
        some = among.rows(index)
        parts.append(exact_kl(some.log_reference, act(student, some.seen)[0].log_softmax(-1)))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
