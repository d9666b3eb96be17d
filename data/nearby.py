"""Parts of a map: some of its features, and those near agents, of a map wider than a scene.

Shape legend: A agents, F features, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.scene import RoadMap


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


def feature_boxes(road: RoadMap) -> Tensor:
    """[F, 4] float32 bounding boxes of features: least x, least y, greatest x, greatest y, metres.

    A feature without points has an empty box, which is near nobody.
    """
    index = road.point_feature.unsqueeze(-1).expand(-1, 2)
    least, most = (road.point.new_full((len(road.kind), 2), limit) for limit in (torch.inf, -torch.inf))
    least = least.scatter_reduce(0, index, road.point[:, :2], "amin")
    most = most.scatter_reduce(0, index, road.point[:, :2], "amax")
    return torch.cat((least, most), dim=-1)


def features_near(boxes: Tensor, position: Tensor, reach: Tensor) -> Tensor:
    """Which features come near to an agent, by their bounding boxes: lines may have few points.

    Args:
        boxes: [F, 4] of ``feature_boxes``. position: [A, 2] metres. reach: [A] metres.

    Returns:
        [F] bool.
    """
    point = position.unsqueeze(1)  # [A, 1, 2]
    away = torch.maximum(boxes[:, :2] - point, point - boxes[:, 2:]).clamp(min=0.0)  # [A, F, 2]
    return (away.square().sum(-1) <= reach.square().unsqueeze(-1)).any(0)
