"""Rewards of events (SPACeR, section 4.1), and what events leave in the state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.simulator.events import Events
from pipeline.simulator.step import State

__all__ = ["RewardConfig", "blameable", "note_events", "ongoing_excused", "task_rewards"]


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the task reward.

    Args:
        goal: paid once, on reaching the end of the log.
        collision: for a decision in which the agent's box overlaps another.
        off_road: for a decision in which a corner of a vehicle's box is off the road.
        red_light: for passing a red light; 0 in the paper.
        per_event: pay for a collision or leaving the road when it begins, not at every decision while it lasts.
        forgive_start: a collision or a place off the road that an agent starts in does not count until it has ended
            once; many recorded vehicles are parked beside the road.
    """

    goal: float = 1.0
    collision: float = -0.75
    off_road: float = -0.75
    red_light: float = -0.75
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


def note_events(state: State, events: Events) -> State:
    """The state with what agents remember of the events of a decision."""
    return dataclasses.replace(
        state, collided=events.collision, goal_reached=torch.logical_or(state.goal_reached, events.goal)
    )
