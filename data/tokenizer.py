"""Motion to tokens and back: rolling matching against the vocabulary, and execution of tokens.

Shape legend: ``...`` any leading dimensions ending with agents, T steps, N tokens, K vocabulary size. Poses are
(x, y, heading) in scene-centred coordinates, since float32 resolves a millimetre only within some kilometres of the
origin, and token ends are a few centimetres apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import rotate, to_local, wrap_angle
from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from data.vocabulary import TYPE_NAMES, Vocabulary, corner_distance, pose_corners, type_index

# A segment that no token matches within this mean corner distance (metres) is a jump of the recording (a flipped
# heading, a swapped identity), not motion.
MAX_JUMP = 1.0


@dataclass(frozen=True)
class MotionTokens:
    """Motion as tokens; token n leads from boundary n to boundary n + 1, boundary n is step n * token_steps."""

    ids: Tensor  # [..., N] int64, 0 where not valid
    valid: Tensor  # [..., N] bool: both boundaries recorded, and no jump between
    poses: (
        Tensor  # [..., N + 1, 3] float32 at the boundaries: of the tokens, or recorded where matching (re)started
    )
    pose_valid: Tensor  # [..., N + 1] bool: recorded, or extrapolated backwards


def local_pose(pose: Tensor, frame: Tensor) -> Tensor:
    """Pose [..., 3] in the frame of ``frame`` [..., 3]; the heading difference is wrapped."""
    position = to_local(pose[..., :2], frame[..., :2], frame[..., 2])
    return torch.cat((position, wrap_angle(pose[..., 2:] - frame[..., 2:])), dim=-1)


def apply_token(vocabulary: Vocabulary, pose: Tensor, ids: Tensor, types: Tensor) -> Tensor:
    """Execute one token.

    Args:
        pose: [..., 3] start. ids: [...] int64 token. types: [...] int64 from ``type_index``.

    Returns:
        [..., token_steps, 3] the pose after each 0.1 s, heading in [-pi, pi); the last is the next boundary.
    """
    motion = vocabulary.poses[types, ids]  # [..., token_steps, 3]
    start = pose.unsqueeze(-2)
    position = rotate(motion[..., :2], start[..., 2]) + start[..., :2]
    return torch.cat((position, wrap_angle(start[..., 2:] + motion[..., 2:])), dim=-1)


def match_token(vocabulary: Vocabulary, pose: Tensor, target: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
    """The token from ``pose`` [..., 3] that ends nearest to ``target`` [..., 3].

    Returns:
        ids [...] int64 and the remaining mean corner distance [...] in metres.
    """
    distance, ids = _distances(vocabulary.corners[types], vocabulary.box[types], pose, target).min(-1)
    return ids, distance


def _distances(token_corners: Tensor, box: Tensor, pose: Tensor, target: Tensor) -> Tensor:
    """Mean corner distance [..., K] of ``target`` from the end of each token."""
    goal = pose_corners(local_pose(target, pose), box)  # [..., 4, 2]
    return corner_distance(token_corners, goal.unsqueeze(-3))


def tokenize_motion(
    vocabulary: Vocabulary,
    pose: Tensor,
    valid: Tensor,
    types: Tensor,
    anchor: int | None = CURRENT_INDEX,
) -> MotionTokens:
    """Tokenise motion by rolling matching: each token starts at the end of the token before it.

    Matching restarts from the recorded pose after a gap or a jump. It also does so at ``anchor``, so that the
    future starts exactly where a simulation does.

    Args:
        pose: [..., T, 3] recorded, T - 1 a multiple of token_steps (steps after the last boundary are not read).
        valid: [..., T] bool. types: [...] from ``type_index``.
        anchor: a step on a boundary, or None.

    Raises:
        ValueError: the anchor is not on a boundary.
    """
    return tokenize_noisy(vocabulary, pose, valid, types, None, anchor)[0]


def tokenize_noisy(
    vocabulary: Vocabulary,
    pose: Tensor,
    valid: Tensor,
    types: Tensor,
    rank: Tensor | None,
    anchor: int | None = CURRENT_INDEX,
    max_jump: float = MAX_JUMP,
) -> tuple[MotionTokens, Tensor]:
    """``tokenize_motion`` with noise for training: tokens may deviate from the recording and return to it.

    Args:
        pose, valid, types, anchor: as for ``tokenize_motion``. max_jump: see ``MAX_JUMP``, metres.
        rank: [..., N] int64, rank by distance of the token to execute, 0 for the nearest; None for always 0.

    Returns:
        The executed tokens, and [..., N] int64 the tokens nearest to the recording from the same starts, 0 where
        not valid.

    Raises:
        ValueError: the anchor is not on a boundary.
    """
    steps = vocabulary.token_steps
    if anchor is not None and anchor % steps:
        raise ValueError(f"step {anchor} is not on a boundary of tokens of {steps} steps")
    boundary = slice(0, pose.shape[-2] - (pose.shape[-2] - 1) % steps, steps)
    pose, valid = pose[..., boundary, :], valid[..., boundary]
    token_corners, box = vocabulary.corners[types], vocabulary.box[types]
    current = pose[..., 0, :]
    ids, nearest, matched, poses = [], [], [], [current]
    # Reading a number from a device waits for it, so this is done once.
    ranks = 1 if rank is None else min(int(rank.max()) + 1, vocabulary.size)
    for index in range(pose.shape[-2] - 1):
        target = pose[..., index + 1, :]
        every = _distances(token_corners, box, current, target)
        distance, best = every.min(-1)
        good = valid[..., index] & valid[..., index + 1] & (distance <= max_jump)
        nearest.append(torch.where(good, best, 0))
        if rank is not None:
            near = every.topk(ranks, dim=-1, largest=False).indices
            best = near.gather(-1, rank[..., index].clamp(max=ranks - 1).unsqueeze(-1)).squeeze(-1)
        reached = apply_token(vocabulary, current, best, types)[..., -1, :]
        restart = ~good | ((index + 1) * steps == anchor)
        current = torch.where(restart.unsqueeze(-1), target, reached)
        ids.append(torch.where(good, best, 0))
        matched.append(good)
        poses.append(current)
    tokens = MotionTokens(
        ids=torch.stack(ids, dim=-1),
        valid=torch.stack(matched, dim=-1),
        poses=torch.stack(poses, dim=-2),
        pose_valid=valid,
    )
    return tokens, torch.stack(nearest, dim=-1)


def extend_back(pose: Tensor, velocity: Tensor, valid: Tensor, token_steps: int) -> tuple[Tensor, Tensor]:
    """Extend tracks that begin inside a token, or at the current step, back to the previous boundary.

    Velocity and heading are constant there. So every simulated agent has one token of history (CAT-K).

    Args:
        pose: [..., T, 3]. velocity: [..., T, 2] m/s. valid: [..., T].

    Returns:
        pose and valid, extended.
    """
    step = torch.arange(valid.shape[-1], device=valid.device)
    first = torch.where(valid, step, valid.shape[-1]).amin(-1)  # [...], T where never valid
    late = (first % token_steps != 0) | (first == CURRENT_INDEX)
    start = torch.where(late, (first - 1).div(token_steps, rounding_mode="floor") * token_steps, first)
    extended = (step >= start.unsqueeze(-1)) & (step < first.unsqueeze(-1)) & valid.any(-1, keepdim=True)
    at = first.clamp(max=valid.shape[-1] - 1)[..., None, None]
    pose0 = pose.gather(-2, at.expand(*at.shape[:-1], 3))  # [..., 1, 3]
    velocity0 = velocity.gather(-2, at.expand(*at.shape[:-1], 2))
    ago = (first.unsqueeze(-1) - step).unsqueeze(-1) * STEP_SECONDS  # [..., T, 1]
    back = torch.cat((pose0[..., :2] - velocity0 * ago, pose0[..., 2:].expand_as(ago)), dim=-1)
    return torch.where(extended.unsqueeze(-1), back, pose), valid | extended


def scene_origin(scene: Scene) -> Tensor:
    """Origin of model coordinates: mean position [2] or [B, 2] of the agents valid at the current step, metres."""
    weight = scene.simulated.unsqueeze(-1)
    position = scene.agents.position[..., CURRENT_INDEX, :2].double()
    return ((position * weight).sum(-2) / weight.sum(-2).clamp(min=1)).float()


def tokenize_scene(vocabulary: Vocabulary, scene: Scene, origin: Tensor) -> MotionTokens:
    """Tokenise all tracks of a scene or a batch of scenes.

    Args:
        origin: [2] or [B, 2], subtracted from all positions.

    Returns:
        ``MotionTokens`` with leading [A] or [B, A].
    """
    agents = scene.agents
    position = agents.position[..., :2] - origin[..., None, None, :]
    pose = torch.cat((position, agents.heading.unsqueeze(-1)), dim=-1)
    pose, valid = extend_back(pose, agents.velocity, agents.valid, vocabulary.token_steps)
    return tokenize_motion(vocabulary, pose, valid, type_index(agents.type))


def retokenisation_error(scenes: Iterable[Scene], vocabulary: Vocabulary) -> dict[str, float]:
    """Distance of executed tokens from the recording, over all valid 0.1 s steps of valid tokens.

    Returns:
        For each type that occurs: ``TYPE_position_mean_m``, ``TYPE_position_p99_m``, ``TYPE_heading_mean_deg``,
        ``TYPE_heading_p99_deg``, ``TYPE_steps`` (number of compared steps) and ``TYPE_jump_share`` (fraction of
        the segments recorded at both ends that are jumps).
    """
    errors: list[list[Tensor]] = [[] for _ in TYPE_NAMES]
    segments = torch.zeros(len(TYPE_NAMES))
    jumps = torch.zeros(len(TYPE_NAMES))
    for scene in scenes:
        origin = scene_origin(scene)
        tokens = tokenize_scene(vocabulary, scene, origin)
        types = type_index(scene.agents.type)
        error, counted = _step_errors(vocabulary, scene, origin, tokens)
        recorded_ends = tokens.pose_valid[:, :-1] & tokens.pose_valid[:, 1:]
        for index in range(len(TYPE_NAMES)):
            mine = types == index
            errors[index].append(error[mine][counted[mine]])
            segments[index] += recorded_ends[mine].sum()
            jumps[index] += (recorded_ends & ~tokens.valid)[mine].sum()
    figures: dict[str, float] = {}
    for index, name in enumerate(TYPE_NAMES):
        error = torch.cat(errors[index]) if errors[index] else torch.zeros(0, 2)
        if not len(error):
            continue
        for column, unit in enumerate(("position", "heading")):
            values, suffix = error[:, column].sort().values, "m" if unit == "position" else "deg"
            figures[f"{name}_{unit}_mean_{suffix}"] = float(values.double().mean())
            figures[f"{name}_{unit}_p99_{suffix}"] = float(values[int(0.99 * (len(values) - 1))])
        figures[f"{name}_steps"] = float(len(error))
        figures[f"{name}_jump_share"] = float(jumps[index] / segments[index])
    return figures


def _step_errors(
    vocabulary: Vocabulary, scene: Scene, origin: Tensor, tokens: MotionTokens
) -> tuple[Tensor, Tensor]:
    """Errors [A, N * token_steps, 2] in metres and degrees at every step after the first, and their mask."""
    count, steps = tokens.ids.shape[-1], vocabulary.token_steps
    types = type_index(scene.agents.type)[:, None].expand_as(tokens.ids)
    executed = apply_token(vocabulary, tokens.poses[:, :-1], tokens.ids, types).flatten(1, 2)
    position = scene.agents.position[:, 1 : 1 + count * steps, :2] - origin
    distance = (executed[..., :2] - position).norm(dim=-1)
    angle = wrap_angle(executed[..., 2] - scene.agents.heading[:, 1 : 1 + count * steps]).abs().rad2deg()
    counted = scene.agents.valid[:, 1 : 1 + count * steps] & tokens.valid.repeat_interleave(steps, dim=-1)
    return torch.stack((distance, angle), dim=-1), counted
