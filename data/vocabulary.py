"""Motion vocabulary: K short motions per agent type, found by k-disks clustering of recorded segments.

A token is the motion of an agent in ``token_steps`` simulator steps, in the frame of its pose at the start. The
distance of two tokens is the mean distance of the four corners of a canonical box at their ends (SMART, CAT-K;
SPACeR section 3). The first centre stands still. Then a random remaining segment becomes a centre and removes all
segments within a tolerance; a token is the mean of the segments that its centre removed. The tolerance is searched
per type: the smallest with which K centres cover the required fraction of the segments.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.files import atomic_write
from data.geometry import box_corners, to_local, wrap_angle
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, AgentType, Scene

# Errors of ``load_saved`` for a file that torch.save did not write, or that was damaged since.
LOAD_ERRORS = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)

TYPE_NAMES = ("vehicle", "pedestrian", "cyclist")
# Length and width in metres of the canonical box of a type, used for all agents of the type (CAT-K).
_BOXES = ((4.8, 2.0), (1.0, 1.0), (2.0, 1.0))
# Segments with a higher speed (m/s) or yaw rate (rad/s) are errors of the recording, per type.
_MAX_SPEED = (45.0, 8.0, 25.0)
_MAX_YAW_RATE = (4.0, 10.0, 6.0)
# Ordinary speeds and yaw rates per type, for tokens that fill up where recorded motions are too few.
_GRID_SPEED = (30.0, 3.0, 12.0)
_GRID_YAW_RATE = (0.8, 2.0, 1.2)
# Segments that move less than this (metres) count once as standing still; otherwise parked cars would be most of
# the sample.
_STANDING = 0.01
_FORMAT = 1


@dataclass(frozen=True)
class VocabularyConfig:
    """Options of building the motion vocabulary.

    Attributes:
        size: tokens per agent type (K).
        token_steps: simulator steps of 0.1 s that a token lasts; 2 is 5 Hz, 5 is 2 Hz. Must divide 10 and 80.
        coverage: fraction of the segments that must be within the tolerance of a token.
        mirror: also use every segment mirrored left to right.
        max_segments: segments kept per type (a uniform sample of all).
        min_tolerance: smallest tolerance tried, metres.

    Raises:
        UserError: a value out of range.
    """

    size: int = 200
    token_steps: int = 2
    coverage: float = 0.995
    mirror: bool = True
    max_segments: int = 100_000
    min_tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.token_steps < 1 or CURRENT_INDEX % self.token_steps or FUTURE_STEPS % self.token_steps:
            raise UserError(
                f"vocabulary token_steps is {self.token_steps}; it must divide {CURRENT_INDEX} and {FUTURE_STEPS} "
                "(1, 2, 5 or 10)"
            )
        if self.size < 2:
            raise UserError(f"vocabulary size is {self.size}; at least 2 tokens per type are needed")
        if not 0 < self.coverage <= 1 or self.min_tolerance <= 0 or self.max_segments < 1:
            raise UserError(
                "vocabulary: coverage must be in (0, 1], min_tolerance above 0 and max_segments at least 1"
            )


def type_index(agent_type: Tensor) -> Tensor:
    """Row of the vocabulary for ``AgentType`` values of any shape: 1 pedestrian, 2 cyclist, 0 all others."""
    pedestrian = (agent_type == AgentType.PEDESTRIAN).long()
    return pedestrian + 2 * (agent_type == AgentType.CYCLIST).long()


@dataclass(frozen=True)
class Vocabulary:
    """K motions for each of the types of ``TYPE_NAMES``.

    Attributes:
        poses: [3, K, token_steps, 3] float32: x, y (metres) and heading (radians) after each 0.1 s in the frame of
            the pose at the token's start; the last is the token's end. Token 0 stands exactly still.
        box: [3, 2] float32 canonical length and width, metres.
        tolerance: [3] float32 metres, result of the search.
    """

    poses: Tensor
    box: Tensor
    tolerance: Tensor

    @property
    def token_steps(self) -> int:
        return int(self.poses.shape[2])

    @property
    def size(self) -> int:
        """K, tokens per type."""
        return int(self.poses.shape[1])

    @property
    def ends(self) -> Tensor:
        """[3, K, 3] poses at the tokens' ends."""
        return self.poses[:, :, -1]

    @cached_property
    def corners(self) -> Tensor:
        """[3, K, 4, 2] corners of the canonical boxes at the tokens' ends."""
        return pose_corners(self.ends, self.box[:, None])

    def to(self, device: torch.device | str) -> Vocabulary:
        return Vocabulary(self.poses.to(device), self.box.to(device), self.tolerance.to(device))

    def state_dict(self) -> dict[str, Tensor]:
        return {"poses": self.poses.cpu(), "box": self.box.cpu(), "tolerance": self.tolerance.cpu()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Vocabulary:
        """Inverse of ``state_dict``.

        Raises:
            KeyError, ValueError: not a vocabulary.
        """
        poses, box, tolerance = state["poses"], state["box"], state["tolerance"]
        types = len(TYPE_NAMES)
        if poses.dim() != 4 or poses.shape[0] != types or poses.shape[3] != 3 or box.shape != (types, 2):
            raise ValueError(f"poses have shape {tuple(poses.shape)}, expected ({types}, K, token_steps, 3)")
        return cls(poses.float(), box.float(), tolerance.float())

    def save(self, path: Path) -> None:
        """Write atomically; the same vocabulary gives the same bytes."""
        atomic_write(path, lambda file: torch.save({"format": _FORMAT, "vocabulary": self.state_dict()}, file))

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote.

        Raises:
            UserError: no such file, or not a vocabulary of this format.
        """
        try:
            content = load_saved(path)
            if isinstance(content, dict) and "kind" in content:
                raise UserError(
                    f"{path}: a checkpoint of a {content['kind']}, not a motion vocabulary; give the vocabulary.pt "
                    "that tokenize wrote"
                )
            if not isinstance(content, dict) or content["format"] != _FORMAT:
                raise ValueError(f"expected a dict of format {_FORMAT}")
            return cls.from_state_dict(content["vocabulary"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such vocabulary; run tokenize first") from error
        except LOAD_ERRORS as error:
            raise UserError(f"{path}: not a motion vocabulary of this version; run tokenize again") from error


def load_saved(path: Path) -> Any:
    """What torch.save wrote, without running code from it. torch.load compares no checksums.

    Raises:
        LOAD_ERRORS: not such a file, or damaged.
    """
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def pose_corners(pose: Tensor, box: Tensor) -> Tensor:
    """Corners [..., 4, 2] of boxes [..., 2] (length, width) at poses [..., 3]."""
    return box_corners(pose[..., :2], pose[..., 2], box[..., 0], box[..., 1])


def corner_distance(corners: Tensor, other: Tensor) -> Tensor:
    """Mean distance [...] of four corners [..., 4, 2], metres; arguments broadcast."""
    return torch.linalg.vector_norm(corners - other, dim=-1).mean(-1)


def mine_segments(scene: Scene, token_steps: int) -> tuple[Tensor, Tensor]:
    """All recorded motions of ``token_steps`` steps, without overlap along each track.

    Returns:
        poses [M, token_steps, 3] float32 in the frame of the segment's start, and types [M] (0 to 2). Segments
        with an invalid step, or faster than their type can move, are left out.
    """
    agents = scene.agents
    windows = torch.arange(0, scene.num_steps - token_steps, token_steps)
    steps = windows[:, None] + torch.arange(token_steps + 1)  # [W, token_steps + 1]
    valid = agents.valid[:, steps].all(-1)  # [A, W]
    position = agents.position[:, steps, :2][valid].double()  # [M, token_steps + 1, 2]
    heading = agents.heading[:, steps][valid].double()
    types = type_index(agents.type)[:, None].expand_as(valid)[valid]
    local = to_local(position[:, 1:], position[:, :1], heading[:, :1])
    poses = torch.cat((local, wrap_angle(heading[:, 1:] - heading[:, :1]).unsqueeze(-1)), dim=-1)
    moves = torch.diff(poses, dim=1, prepend=torch.zeros_like(poses[:, :1]))
    speed = moves[..., :2].norm(dim=-1).amax(-1) / STEP_SECONDS
    yaw_rate = wrap_angle(moves[..., 2]).abs().amax(-1) / STEP_SECONDS
    plausible = (speed <= torch.tensor(_MAX_SPEED)[types]) & (yaw_rate <= torch.tensor(_MAX_YAW_RATE)[types])
    return poses[plausible].float(), types[plausible]


class _Pool:
    """A uniform sample of bounded size from a stream of segments, one per type."""

    def __init__(self, limit: int, generator: torch.Generator) -> None:
        self._limit, self._generator = limit, generator
        self._poses: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._count = 0

    def add(self, poses: Tensor) -> None:
        self._poses.append(poses)
        self._keys.append(torch.rand(len(poses), generator=self._generator, dtype=torch.float64))
        self._count += len(poses)
        if self._count > 4 * self._limit:
            self._shrink()

    def _shrink(self) -> None:
        poses, keys = torch.cat(self._poses), torch.cat(self._keys)
        order = torch.argsort(keys, stable=True)[: self._limit]
        self._poses, self._keys, self._count = [poses[order]], [keys[order]], len(order)

    def sample(self) -> Tensor:
        """[M, token_steps, 3], M at most the limit, in random order."""
        if not self._poses:
            return torch.zeros(0)
        self._shrink()
        return self._poses[0]


def build_vocabulary(scenes: Iterable[Scene], config: VocabularyConfig, seed: int) -> Vocabulary:
    """Find K motions per type.

    A type with fewer distinct recorded motions than tokens (such as cyclists in a small set) is filled up from a
    grid of arcs of ordinary speed and yaw rate, each time with the arc farthest from all tokens. So every
    vocabulary has exactly K distinct tokens per type.

    Args:
        scenes: iterated once. seed: of the samples and the order of centres; the result is deterministic.
    """
    generator = torch.Generator().manual_seed(seed)
    pools = [_Pool(config.max_segments, generator) for _ in TYPE_NAMES]
    for scene in scenes:
        poses, types = mine_segments(scene, config.token_steps)
        if config.mirror:
            poses, types = torch.cat((poses, poses * torch.tensor([1.0, -1.0, -1.0]))), types.repeat(2)
        for index, pool in enumerate(pools):
            pool.add(poses[types == index])
    box = torch.tensor(_BOXES)
    tokens, tolerances = [], []
    for index, pool in enumerate(pools):
        rest = torch.zeros(1, config.token_steps, 3)
        sample = pool.sample().reshape(-1, config.token_steps, 3)
        away = corner_distance(pose_corners(sample[:, -1], box[index]), pose_corners(rest[:, -1], box[index]))
        segments = torch.cat((rest, sample[away > _STANDING]))
        tolerance = _search_tolerance(segments, box[index], config)
        centres = _k_disks(segments, box[index], config.size, tolerance)[0]
        tokens.append(_fill(centres, _motion_grid(index, config), box[index], config.size))
        tolerances.append(tolerance)
    return Vocabulary(torch.stack(tokens), box, torch.tensor(tolerances))


def _k_disks(segments: Tensor, box: Tensor, count: int, tolerance: float) -> tuple[Tensor, float]:
    """Greedy disks over segments [M, token_steps, 3] in their order; the first segment is the first centre.

    Returns:
        tokens [at most count, token_steps, 3], and the fraction of the segments that are in a disk.
    """
    corners = pose_corners(segments[:, -1], box)  # [M, 4, 2]
    left = torch.arange(len(segments))
    centres: list[int] = []
    means: list[Tensor] = []
    while len(left) and len(centres) < count:
        centre = left[0]
        near = corner_distance(corners[left], corners[centre]) <= tolerance
        members = segments[left[near]]
        offset = members - segments[centre]
        offset[..., 2] = wrap_angle(offset[..., 2])
        mean = segments[centre] + offset.mean(0)
        # The first token stays exactly still, so that parked agents do not move.
        means.append(segments[centre] if not centres else mean)
        centres.append(int(centre))
        left = left[~near]
    covered = 1 - len(left) / len(segments)
    return _separate(torch.stack(means), segments[centres], box, tolerance), covered


def _separate(means: Tensor, centres: Tensor, box: Tensor, tolerance: float) -> Tensor:
    """Replace every mean that is closer than half the tolerance to another by its centre.

    Centres are a tolerance apart by construction, so this terminates.
    """
    tokens, moved = means, torch.ones(len(means), dtype=torch.bool)
    while True:
        corners = pose_corners(tokens[:, -1], box)
        distance = corner_distance(corners[:, None], corners[None]).fill_diagonal_(math.inf)
        close = (distance < tolerance / 2).any(1) & moved
        if not bool(close.any()):
            return tokens
        tokens = torch.where(close[:, None, None], centres, tokens)
        moved &= ~close


def _search_tolerance(segments: Tensor, box: Tensor, config: VocabularyConfig) -> float:
    """Smallest tolerance with which K disks reach the coverage, by bisection on its logarithm."""

    def enough(tolerance: float) -> bool:
        return _k_disks(segments[:20_000], box, config.size, tolerance)[1] >= config.coverage

    low = config.min_tolerance
    if enough(low):
        return low
    high = low * 2
    while not enough(high):
        low, high = high, high * 2
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _motion_grid(index: int, config: VocabularyConfig) -> Tensor:
    """Arcs [at least 8 K, token_steps, 3] of constant speed and yaw rate from a grid."""
    turns = 2 * math.ceil(math.sqrt(2 * config.size)) + 1
    speed, yaw_rate = torch.meshgrid(
        torch.linspace(0, _GRID_SPEED[index], math.ceil(8 * config.size / turns) + 1, dtype=torch.float64)[1:],
        torch.linspace(-_GRID_YAW_RATE[index], _GRID_YAW_RATE[index], turns, dtype=torch.float64),
        indexing="ij",
    )
    time = STEP_SECONDS * torch.arange(1, config.token_steps + 1, dtype=torch.float64)
    heading = yaw_rate.reshape(-1, 1) * time
    # The chord of an arc of length s and turn a is s * sinc(a / 2), at half the turn.
    chord = speed.reshape(-1, 1) * time * torch.sinc(heading / (2 * math.pi))
    return torch.stack((chord * torch.cos(heading / 2), chord * torch.sin(heading / 2), heading), dim=-1).float()


def _fill(tokens: Tensor, grid: Tensor, box: Tensor, count: int) -> Tensor:
    """Extend tokens [n, token_steps, 3] to ``count`` by farthest points of the grid."""
    grid_corners = pose_corners(grid[:, -1], box)
    nearest = torch.full((len(grid),), math.inf)
    for corners in pose_corners(tokens[:, -1], box):
        nearest = torch.minimum(nearest, corner_distance(grid_corners, corners))
    added: list[int] = []
    for _ in range(count - len(tokens)):
        best = int(nearest.argmax())
        added.append(best)
        nearest = torch.minimum(nearest, corner_distance(grid_corners, grid_corners[best]))
    return torch.cat((tokens, grid[added]))
