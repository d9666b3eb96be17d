"""What readers of records put right or found coarse, counted over a shard or a dataset, and a line of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Remarks", "rounding_error"]

# How many scenarios are named.
_EXAMPLES = 3
_TEXTS = {
    "rounding": "coordinates of up to {most:,.0f} m, which float32 rounds by up to {error:.2g} m, here as in "
    "Waymo's metric: likelihoods of speeds and accelerations fall; move the scenes nearer to the origin",
    "velocity": "velocities that are NaN or infinite in valid states; differences of positions are taken instead",
    "size": "sizes that are NaN or infinite in valid states; those at the current step are taken instead",
    "state": "positions that are NaN or infinite of agents that are not simulated; such states count as not valid",
    "speed_limit": "speed limits that are NaN, infinite or negative; they count as none",
    "timestamp": "timestamps that are NaN or infinite; steps of 0.1 s are taken instead",
    "stop_point": "stop points of lights that are NaN or infinite; the lights count as not observed there",
    "map_point": "map points that are NaN or infinite in features other than road edges; the points are left out",
}


@dataclass
class Remarks:
    """Kinds of remarks: how many scenarios they are of, the first ids, and the largest coordinate in metres.

    Attributes:
        found: by kind, as plain values.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, scenario_id: str, most: float = 0.0) -> None:
        """Count a scenario once under a kind."""
        self.merge({kind: {"count": 1, "ids": [scenario_id], "most": most}})

    def merge(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Add those of other shards."""
        for kind, row in found.items():
            own = self.found.setdefault(kind, {"count": 0, "ids": [], "most": 0.0})
            own["count"] += row["count"]
            own["ids"] = [*own["ids"], *row["ids"]][:_EXAMPLES]
            own["most"] = max(own["most"], row["most"])

    def lines(self, where: str) -> list[str]:
        """One line for each kind."""
        texts = []
        for kind, row in self.found.items():
            most = row["most"]
            text = _TEXTS[kind].format(most=most, error=rounding_error(most))
            texts.append(f"{where}: {row['count']} scenarios have {text} ({', '.join(row['ids'])})")
        return texts


def rounding_error(coordinate: float) -> float:
    """Half the distance of neighbouring float32 numbers around a coordinate, metres."""
    return float(np.spacing(np.float32(coordinate))) / 2
