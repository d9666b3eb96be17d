"""SUMO's front points to smooth, physically plausible box poses.

SUMO moves the front bumper along lanes and, with the sublane model, sideways at once; pedestrians turn on the spot.
So the front points are smoothed in time, and the box follows its front point as a trailer follows its hitch (a
tractrix): the point ``lever`` metres behind the front, about the rear axle, moves along the box only. Headings then
never jump, are constant while a vehicle stands, and follow curves as those of a real vehicle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data.scene import STEP_SECONDS

FloatArray = NDArray[np.float64]

# Tracking noise is correlated over about this many steps, and decreases to zero below this speed (m/s).
_NOISE_STEPS = 1.0
_NOISE_SPEED = 1.0


@dataclass(frozen=True)
class Motion:
    """Boxes of N users over T steps; NaN where ``present`` is false.

    Attributes:
        centre: [N, T, 2] metres. heading: [N, T] radians in [-pi, pi). velocity: [N, T, 2] m/s, central
            differences of the centre. present: [N, T] bool.
    """

    centre: FloatArray
    heading: FloatArray
    velocity: FloatArray
    present: NDArray[np.bool_]


def box_motion(
    front: FloatArray,
    heading: FloatArray,
    length: FloatArray,
    lever: FloatArray,
    smoothing: FloatArray,
    fastest: FloatArray,
) -> Motion:
    """Turn recorded front points into box poses.

    Args:
        front: [N, T, 2] metres, NaN while absent. Each user is present in one run of steps.
        heading: [N, T] radians as recorded; only the first one of each user is used.
        length: [N] metres of the boxes. lever: [N] metres from the front to the rear axle.
        smoothing: [N] standard deviation of the smoothing, seconds.
        fastest: [N] m/s; a user that SUMO moves faster than this between two steps is absent from then on.
    """
    present = _until_jump(front, fastest)
    smooth = _smooth(front, present, smoothing / STEP_SECONDS)
    angle = _trail(smooth, present, heading, lever)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    centre = smooth - along * (length / 2)[:, None, None]
    wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
    return Motion(centre, wrapped, _velocity(centre, present), present)


def with_tracking_noise(
    rng: np.random.Generator, motion: Motion, along: FloatArray, across: FloatArray, turn: FloatArray
) -> Motion:
    """Add the noise of a tracker to poses; velocities are unchanged, since a tracker filters them.

    In WOMD accelerations are mostly such noise, and standing users have none.

    Args:
        rng: source of the noise. along, across: [N] standard deviations in metres in the box's frame.
        turn: [N] standard deviation of headings, radians.
    """
    users, steps = motion.present.shape
    white = rng.normal(size=(users, steps, 3))
    noise = gaussian_filter1d(white, _NOISE_STEPS, axis=1, mode="wrap")
    noise /= noise.std() or 1.0
    speed = np.linalg.norm(motion.velocity, axis=-1)
    noise *= np.stack([along, across, turn], axis=-1)[:, None] * np.minimum(speed / _NOISE_SPEED, 1.0)[..., None]
    cos, sin = np.cos(motion.heading), np.sin(motion.heading)
    offset = np.stack(
        [noise[..., 0] * cos - noise[..., 1] * sin, noise[..., 0] * sin + noise[..., 1] * cos], axis=-1
    )
    heading = (motion.heading + noise[..., 2] + math.pi) % (2 * math.pi) - math.pi
    return Motion(motion.centre + offset, heading, motion.velocity, motion.present)


def _until_jump(front: FloatArray, fastest: FloatArray) -> NDArray[np.bool_]:
    """Presence [N, T] up to the first jump: SUMO sometimes moves a pedestrian by some metres at once."""
    step = np.linalg.norm(np.diff(front, axis=1), axis=-1)
    jumps = step > (fastest * STEP_SECONDS)[:, None]
    jumped = np.concatenate([np.zeros((len(front), 1), dtype=bool), np.maximum.accumulate(jumps, axis=1)], axis=1)
    return ~np.isnan(front[..., 0]) & ~jumped


def _smooth(front: FloatArray, present: NDArray[np.bool_], sigma: FloatArray) -> FloatArray:
    """Gaussian smoothing in time; the ends are padded by point reflection, which keeps the speed."""
    smooth = np.full_like(front, np.nan)
    for user, mask in enumerate(present):
        steps = np.flatnonzero(mask)
        if len(steps) == 0:
            continue
        track = front[user, steps]
        pad = min(len(track) - 1, math.ceil(4 * sigma[user]))
        padded = np.pad(track, ((pad, pad), (0, 0)), mode="reflect", reflect_type="odd")
        filtered = gaussian_filter1d(padded, sigma[user], axis=0, mode="nearest")
        smooth[user, steps] = filtered[pad : pad + len(track)]
    return smooth


def _trail(front: FloatArray, present: NDArray[np.bool_], recorded: FloatArray, lever: FloatArray) -> FloatArray:
    """Headings [N, T] (not wrapped) of boxes that follow their front points.

    While the front moves straight by d, the angle psi between heading and movement shrinks by the closed form
    tan(psi / 2) -> tan(psi / 2) exp(-d / lever).
    """
    angle = np.where(present, recorded, np.nan)
    step = np.diff(front, axis=1)
    direction = np.arctan2(step[..., 1], step[..., 0])
    decay = np.exp(-np.linalg.norm(step, axis=-1) / lever[:, None])
    for index in range(step.shape[1]):
        goes_on = present[:, index] & present[:, index + 1]
        psi = angle[goes_on, index] - direction[goes_on, index]
        trailing = 2 * np.arctan(np.tan(psi / 2) * decay[goes_on, index])
        angle[goes_on, index + 1] = direction[goes_on, index] + trailing
    return angle


def _velocity(centre: FloatArray, present: NDArray[np.bool_]) -> FloatArray:
    """Central differences, one-sided where a neighbour is absent, zero for a user seen once."""
    following, previous = np.roll(centre, -1, axis=1), np.roll(centre, 1, axis=1)
    has_next, has_previous = np.roll(present, -1, axis=1), np.roll(present, 1, axis=1)
    has_next[:, -1] = False
    has_previous[:, 0] = False
    ahead = np.where(has_next[..., None], following, centre)
    behind = np.where(has_previous[..., None], previous, centre)
    span = np.maximum(has_next.astype(float) + has_previous, 1.0)[..., None] * STEP_SECONDS
    return (ahead - behind) / span
