"""Map and lights as they should not be: features that are missing, signals in another state.

Signatures as in ``tracks``. What is spoilt at a low level is spoilt at a higher one too.
Shape legend: F features, P points, L links, S signals, H = 11 steps of history.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, LightState, RoadMap, Scene

__all__ = ["SWAPPED", "drop_map", "hide_lights", "keep_features", "swap_lights"]

_HISTORY = CURRENT_INDEX + 1
# What each state is taken for: who should stop goes, who may go stops. Colours are confused, arrows are not.
SWAPPED = {
    LightState.UNKNOWN: LightState.STOP,
    LightState.ARROW_STOP: LightState.ARROW_GO,
    LightState.ARROW_CAUTION: LightState.ARROW_GO,
    LightState.ARROW_GO: LightState.ARROW_STOP,
    LightState.STOP: LightState.GO,
    LightState.CAUTION: LightState.GO,
    LightState.GO: LightState.STOP,
    LightState.FLASHING_STOP: LightState.FLASHING_CAUTION,
    LightState.FLASHING_CAUTION: LightState.FLASHING_STOP,
}


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """[count] bool: this share of them, to the nearest whole number, chosen at random."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: int(share * count + 0.5)]] = True
    return chosen


def keep_features(road: RoadMap, kept: Tensor) -> RoadMap:
    """A map with the features ``kept`` [F] bool alone: without the points of the others, and without links from
    or to them. Links to features that were never there stay, as the data have them."""
    number = kept.cumsum(0) - 1
    points = kept[road.point_feature]
    links = kept[road.link_source] & ~torch.isin(road.link_target, road.feature_id[~kept])
    return RoadMap(
        point=road.point[points],
        point_feature=number[road.point_feature[points]],
        feature_id=road.feature_id[kept],
        kind=road.kind[kept],
        subtype=road.subtype[kept],
        speed_limit=road.speed_limit[kept],
        interpolating=road.interpolating[kept],
        link_source=number[road.link_source[links]],
        link_kind=road.link_kind[links],
        link_target=road.link_target[links],
    )


def drop_map(scene: Scene, share: float, generator: torch.Generator) -> Scene:
    """This share of the map's features (lanes, lines, edges and all others alike) is missing; one is always left.

    A signal stays, though its lane may be gone.
    """
    count = len(scene.map.kind)
    lost = _some(count, share, generator)
    if bool(lost.all()):
        lost[:1] = False
    return dataclasses.replace(scene, map=keep_features(scene.map, ~lost))


def _show(scene: Scene, share: float, generator: torch.Generator, table: Tensor) -> Scene:
    """The scene with this share of its signals in the states that ``table`` gives for theirs."""
    lights = scene.lights
    chosen = _some(len(lights.lane_id), share, generator).unsqueeze(-1)
    state = lights.state.clone()
    shown, observed = state[:, :_HISTORY], lights.observed[:, :_HISTORY]
    state[:, :_HISTORY] = torch.where(chosen & observed, table[shown], shown)
    return dataclasses.replace(scene, lights=dataclasses.replace(lights, state=state))


def swap_lights(scene: Scene, share: float, generator: torch.Generator) -> Scene:
    """This share of the signals shows the wrong state of ``SWAPPED`` whenever it is observed up to now."""
    table = torch.tensor([int(SWAPPED[state]) for state in LightState])
    return _show(scene, share, generator, table)


def hide_lights(scene: Scene, share: float, generator: torch.Generator) -> Scene:
    """Of this share of the signals it is seen that they are there, but not what they show."""
    return _show(scene, share, generator, torch.full((len(LightState),), int(LightState.UNKNOWN)))
