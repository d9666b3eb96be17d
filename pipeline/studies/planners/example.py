"""A planner of your own, as short as can be: keeps to the route and stops for what is ahead.

Use it with ``pipeline.studies.planners.example:make``; anything that takes a ``Mission`` and returns a planner
will do.
"""

from __future__ import annotations

import numpy as np

from pipeline.studies.planners.interface import Control, Mission, Situation


class ExamplePlanner:
    period = 2  # asked every 0.2 s; the control is held in between

    def __init__(self, mission: Mission) -> None:
        self.route, self.ego = mission.route, mission.ego

    def plan(self, now: Situation) -> Control:
        x, y, heading = now.pose[self.ego]
        speed = float(np.linalg.norm(now.velocity[self.ego]))
        # Everybody in the coordinates of the route: s along it, d to its left.
        s, d = self.route.project(now.pose[:, :2])
        # Pure pursuit: steer onto a circle through a point of the route some way ahead.
        ahead = max(5.0, 1.5 * speed)
        goal_x, goal_y, _, _ = self.route.at(s[self.ego] + ahead)
        angle = np.arctan2(goal_y - y, goal_x - x) - heading
        steering = float(np.arctan(2 * 2.8 * np.sin(angle) / ahead))
        # Brake for the nearest thing in the lane, or a red light, as hard as it takes to stop 3 m behind it.
        in_lane = now.present & (np.abs(d) < 1.5) & (s > s[self.ego] + 0.1)
        gaps = (s - now.size[:, 0] / 2)[in_lane]
        line, aside = self.route.project(now.stop_line[now.red, :2])
        lights = line[(np.abs(aside) < 2.0) & (line > s[self.ego])]
        gap = np.concatenate((gaps, lights)).min(initial=np.inf) - s[self.ego] - now.size[self.ego, 0] / 2 - 3.0
        if speed**2 > 2 * 1.5 * gap:
            return Control(-min(8.0, speed**2 / (2 * max(gap, 0.1))), steering)
        return Control(1.0 if speed < 10.0 else 0.0, steering)


def make(mission: Mission) -> ExamplePlanner:
    return ExamplePlanner(mission)
