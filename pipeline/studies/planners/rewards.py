"""Self-play policies of different rewards: planners that differ in character, careful, bold or spiteful.

The grid is that of the paper (section A.7): what a goal is worth, what a collision and leaving the road cost,
positive numbers being paid for it. None of them is anchored to the reference, nor is the plain self-play that is
one of the simulators.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data.files import checksum
from data.scenes_source import content_digest
from pipeline.execution.manifest import Recipe, Work, perform
from pipeline.execution.processes import measured
from pipeline.execution.result_cache import code_version
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import POLICY_FILE
from pipeline.stages.selfplay import run_selfplay

_GOALS = (1.0, 0.5)
# Collision and off-road; the first is the usual self-play.
_PAIRS = (
    (-0.75, -0.75),
    (-0.375, -0.375),
    (0.0, -0.75),
    (0.1, -0.75),
    (-0.75, 0.0),
    (-0.375, -0.75),
    (-0.75, -0.375),
    (0.0, 0.0),
    (0.1, -0.375),
    (-0.375, 0.0),
    (0.0, -0.375),
)


@dataclass(frozen=True)
class Character:
    """Weights of a planner's reward: on reaching the goal, and for each decision in a collision or off the road."""

    goal: float
    collision: float
    off_road: float

    @property
    def name(self) -> str:
        return f"selfplay_goal_{self.goal:g}_collision_{self.collision:g}_road_{self.off_road:g}"


def characters(count: int) -> list[Character]:
    """The first ``count`` of the grid of 22, alternating in what a goal is worth."""
    grid = [Character(goal, *pair) for pair in _PAIRS for goal in _GOALS]
    return grid[:count]


# Plain self-play as a simulator of others: the usual reward, goals hidden as often as with an anchor.
PLAIN = Character(1.0, -0.75, -0.75)


def train_character(
    base: SelfPlayConfig,
    character: Character,
    agent_steps: int,
    *,
    scenes: Path,
    reference: Path,
    out: Path,
    seed: int,
) -> Path:
    """Train a policy without an anchor, unless it is there already; an interrupted training goes on, and one of
    other options or inputs is kept in ``replaced``.

    Args:
        base: options of self-play of which reward, anchor and length are replaced.
        character: the reward. agent_steps: length of the training.
        scenes: store to train on. reference: whose tokens are used. out: folder of the training. seed: of it.

    Returns:
        The policy's checkpoint.
    """
    reward = dataclasses.replace(
        base.reward, goal=character.goal, collision=character.collision, off_road=character.off_road
    )
    ppo = dataclasses.replace(base.ppo, beta=0.0, beta_final=None, alpha=0.0)
    config = dataclasses.replace(base, agent_steps=agent_steps, evaluate_every=0, reward=reward, ppo=ppo)
    inputs = {"scenes": content_digest(str(scenes)), "reference": checksum(reference)}
    perform(
        Work(out, "selfplay", out.with_name("replaced") / out.name),
        Recipe(dataclasses.asdict(config), seed, code_version("pipeline.stages.selfplay"), inputs),
        lambda: measured(lambda: run_selfplay(config, scenes=scenes, reference=reference, out=out, seed=seed)),
        title=f"{out.name}:",
    )
    return out / POLICY_FILE
