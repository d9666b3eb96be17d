"""One step of the simulator: tokens move agents exactly, ten steps a second, in all worlds at once.

Shape legend: W worlds, A agents, s simulator steps in a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import FUTURE_STEPS, STEP_SECONDS
from data.tokenizer import apply_token
from data.vocabulary import Vocabulary
from pipeline.simulator.world import World

# Of N agents in a batch of worlds: their worlds [N] and their places there [N].
AgentIndex = tuple[Tensor, Tensor]

# Kinds of ``controlled_agents``.
CONTROLLED = ("all", "moving", "vehicles", "one")


@dataclass(frozen=True)
class State:
    """All agents between two decisions."""

    pose: Tensor  # [W, A, 3] x, y, heading
    velocity: Tensor  # [W, A, 2] m/s
    present: Tensor  # [W, A] bool: in the world now; replayed agents may leave
    last_motion: Tensor  # [W, A, 3] the last token in the agent's frame at its start
    past: Tensor  # [W, A, h, 3] poses at the h decisions before, the latest last
    past_known: Tensor  # [W, A, h] bool
    collided: Tensor  # [W, A] bool: during the last decision
    goal_reached: Tensor  # [W, A] bool: at any time
    goal_hidden: Tensor  # [W, A] bool: not shown in this episode, though still paid
    step: int  # number of simulator steps taken


@dataclass(frozen=True)
class Motion:
    """What one decision did, step by step, with the pose before it."""

    start: Tensor  # [W, A, 3]
    pose: Tensor  # [W, A, s, 3]
    present: Tensor  # [W, A, s] bool
    first_step: int  # number of the first of these steps, counted from the current step


def decisions(vocabulary: Vocabulary) -> int:
    """Decisions in an episode of 8 s."""
    return FUTURE_STEPS // vocabulary.token_steps


def controlled_agents(world: World, kind: str = "all", draw: Tensor | None = None) -> Tensor:
    """[W, A] agents that a policy moves, the others replaying the log.

    Args:
        world: batched.
        kind: ``all`` that exist; those ``moving``, whose log ends elsewhere; moving ``vehicles``; or ``one`` moving
            agent in each world that has any, to which no other agent reacts.
        draw: [W, A] in [0, 1); the moving agent with the largest number is the ``one``.

    Raises:
        ValueError: another kind, or no numbers to draw one with.
    """
    if kind not in CONTROLLED:
        raise ValueError(f"controlled is {kind!r}; expected one of {', '.join(CONTROLLED)}")
    if kind == "all":
        return world.exists
    moving = world.exists & world.moves
    if kind == "vehicles":
        return moving & (world.types == 0)
    if kind == "moving":
        return moving
    if draw is None:
        raise ValueError("controlled is 'one': expected numbers to draw the agent with")
    first = torch.where(moving, draw, -1.0).argmax(-1, keepdim=True)
    return torch.zeros_like(moving).scatter(-1, first, True) & moving


def agent_indices(chosen: Tensor) -> AgentIndex:
    """Where [W, A] is true."""
    world, agent = chosen.nonzero(as_tuple=True)
    return world, agent


def reset(world: World, goal_hidden: Tensor, history: int = 0) -> State:
    """The state of all worlds at the current step, after the logged first second.

    Args:
        world: batched. goal_hidden: [W, A] bool.
        history: earlier decisions that agents remember; those before the logged first second are unknown.
    """
    logged = min(history, world.history_valid.shape[-1])
    unknown = history - logged
    first = world.history_valid.shape[-1] - logged
    pad = torch.nn.functional.pad
    before = world.history_poses[:, :, -2]
    moved = world.history_valid[:, :, -1]
    last = torch.where(moved.unsqueeze(-1), _local(world.pose, before), torch.zeros_like(world.pose))
    nobody = torch.zeros(world.exists.shape, dtype=torch.bool, device=world.exists.device)
    # Contiguous copies, as decisions leave them: compiled code is compiled anew for another memory layout.
    return State(
        pose=world.pose.contiguous(),
        velocity=world.velocity.contiguous(),
        present=world.exists.clone(memory_format=torch.contiguous_format),
        last_motion=last,
        past=pad(world.history_poses[:, :, first:-1], (0, 0, unknown, 0)).contiguous(),
        past_known=pad(world.history_valid[:, :, first:], (unknown, 0)).contiguous(),
        collided=nobody,
        goal_reached=nobody,
        goal_hidden=goal_hidden,
        step=0,
    )


def _local(pose: Tensor, frame: Tensor) -> Tensor:
    """Pose [..., 3] seen from ``frame`` [..., 3].

    ``tokenizer.local_pose`` gives the heading in [-pi, pi), this one in (-pi, pi], and the two differ in the last
    bit: policies are trained on this one.
    """
    delta = pose[..., :2] - frame[..., :2]
    cos, sin = torch.cos(frame[..., 2]), torch.sin(frame[..., 2])
    turn = pose[..., 2] - frame[..., 2]
    return torch.stack(
        (
            delta[..., 0] * cos + delta[..., 1] * sin,
            delta[..., 1] * cos - delta[..., 0] * sin,
            torch.atan2(torch.sin(turn), torch.cos(turn)),
        ),
        dim=-1,
    )


def step(
    world: World, state: State, tokens: Tensor, controlled: Tensor, vocabulary: Vocabulary
) -> tuple[State, Motion]:
    """Execute one token for every controlled agent; the others replay the log.

    Args:
        world: batched. state: before. tokens: [W, A] int64. controlled: [W, A] bool. vocabulary: of the tokens.

    Returns:
        The state after the token, without its events, and the motion.
    """
    steps = vocabulary.token_steps
    first = state.step
    moved = apply_token(vocabulary, state.pose, tokens, world.types)  # [W, A, s, 3]
    logged = world.log[:, :, first : first + steps]
    is_controlled = controlled[..., None]
    pose = torch.where(is_controlled[..., None], moved, logged)
    present = torch.where(is_controlled, state.present[..., None], world.log_valid[:, :, first : first + steps])
    motion = Motion(start=state.pose, pose=pose, present=present & world.exists[..., None], first_step=first + 1)
    return follow(state, motion), motion


def follow(state: State, motion: Motion) -> State:
    """The state after a motion, whoever moved the agents; its events are not in it."""
    end = motion.pose[:, :, -1].contiguous()
    before = motion.pose[:, :, -2] if motion.pose.shape[2] > 1 else state.pose
    return State(
        pose=end,
        velocity=(end[..., :2] - before[..., :2]) / STEP_SECONDS,
        present=motion.present[..., -1].contiguous(),
        last_motion=_local(end, state.pose),
        past=torch.cat((state.past, state.pose.unsqueeze(2)), dim=2)[:, :, 1:],
        past_known=torch.cat((state.past_known, state.present.unsqueeze(2)), dim=2)[:, :, 1:],
        collided=state.collided,
        goal_reached=state.goal_reached,
        goal_hidden=state.goal_hidden,
        step=state.step + motion.pose.shape[2],
    )
