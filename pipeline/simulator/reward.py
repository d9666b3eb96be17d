"""Rewards of events (SPACeR, section 4.1), and what events leave in the state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.simulator.events import Events
from pipeline.simulator.step import Motion, State
from pipeline.simulator.world import World

# From the log, metres: who is farther away is somewhere else.
_FARTHEST = 20.0


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the task reward.

    Args:
        goal: paid once, on reaching the end of the log.
        collision: for a decision in which the agent's box overlaps another.
        off_road: for a decision in which a corner of a vehicle's box is off the road.
        red_light: for passing a red light; 0 in the paper.
        least_goal: a goal nearer than this at the start is not paid, metres; many agents begin within its radius.
        log_distance: for every 10 m that an agent is away from its log at the end of a decision, up to 20 m; agents
            whose log moves, while it goes on. Not in the paper, which pays the goal alone.
        progress: for every metre that an agent comes nearer to its goal, or goes away from it, until it is reached.
        per_event: pay for a collision or leaving the road when it begins, not at every decision while it lasts.
        forgive_start: a collision or a place off the road that an agent starts in does not count until it has ended
            once; many recorded vehicles are parked beside the road.
    """

    goal: float = 1.0
    collision: float = -0.75
    off_road: float = -0.75
    red_light: float = -0.75
    least_goal: float = 0.0
    log_distance: float = 0.0
    progress: float = 0.0
    per_event: bool = False
    forgive_start: bool = True


def ongoing_excused(excused: Events, events: Events) -> Events:
    """The excused collisions and places off the road that go on."""
    return dataclasses.replace(
        excused, collision=excused.collision & events.collision, off_road=excused.off_road & events.off_road
    )


def blameable(events: Events, excused: Events) -> Events:
    """The events that an agent is to blame for: all but the excused ones."""
    return dataclasses.replace(
        events, collision=events.collision & ~excused.collision, off_road=events.off_road & ~excused.off_road
    )


def task_rewards(events: Events, before: Events, config: RewardConfig) -> dict[str, Tensor]:
    """Rewards of a decision by what they are for, [W, A] each; the task reward is their sum.

    Args:
        events: of the decision. before: of the previous decision. config: weights.
    """
    collision = events.collision & ~before.collision if config.per_event else events.collision
    leaving = events.off_road & ~before.off_road if config.per_event else events.off_road
    return {
        "goal": config.goal * events.goal.float(),
        "collision": config.collision * collision.float(),
        "off_road": config.off_road * leaving.float(),
        "red_light": config.red_light * events.red_light.float(),
    }


def log_distance(world: World, state: State) -> Tensor:
    """[W, A] how far agents are from their log, in units of 10 m and up to 20 m; 0 where that does not count.

    Args:
        world: batched. state: after a decision.
    """
    step = state.step - 1
    apart = (state.pose[..., :2] - world.log[:, :, step, :2]).norm(dim=-1).clamp(max=_FARTHEST)
    return torch.where(world.log_valid[:, :, step] & world.moves, apart / 10.0, 0.0)


def goal_progress(world: World, state: State, motion: Motion) -> Tensor:
    """[W, A] metres by which agents came nearer to a goal that was not reached before.

    Args:
        world: batched. state: before the decision. motion: of the decision.
    """
    before, after = ((pose[..., :2] - world.goal).norm(dim=-1) for pose in (motion.start, motion.pose[:, :, -1]))
    return torch.where(world.moves & ~state.goal_reached, before - after, 0.0)


def note_events(state: State, events: Events) -> State:
    """The state with what agents remember of the events of a decision."""
    return dataclasses.replace(
        state, collided=events.collision, goal_reached=torch.logical_or(state.goal_reached, events.goal)
    )
