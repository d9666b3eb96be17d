"""The colours of films, figures and pages: those of ``page/page.css`` in daylight, by the same names (tested)."""

from __future__ import annotations

from data.scene import AgentType
from pipeline.drawing.drawn_map import Line

COLOURS = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "accent": "#0b63a5",
    "canvas": "#f4f5f7",
    "lane": "#cfd5dc",
    "white-line": "#aab3be",
    "yellow-line": "#c79a1b",
    "edge": "#4f5964",
    "crosswalk": "#8b97a5",
    "bump": "#b08d57",
    "driveway": "#c4ccd4",
    "vehicle": "#0072b2",
    "pedestrian": "#d55e00",
    "cyclist": "#007f5f",
    "sdc": "#a0337a",
    "other": "#6b7280",
    "ghost": "#8a8f98",
    "stop": "#c1121f",
    "caution": "#b37400",
    "go": "#1a7f37",
    "policy": "#7b3fb5",
    "reference": "#00798c",
}
# Names of colours and marks of agents, in every chart the same; matplotlib's marks.
AGENTS = {"log": "ghost", "constant_velocity": "caution", "reference": "reference", "policy": "policy"}
MARKS = {"log": "s", "constant_velocity": "D", "reference": "^", "policy": "o"}
TYPES = {
    AgentType.VEHICLE: COLOURS["vehicle"],
    AgentType.PEDESTRIAN: COLOURS["pedestrian"],
    AgentType.CYCLIST: COLOURS["cyclist"],
}
# Broken lines are paler, since a film has no dashes. In the order in which they are drawn.
LINES: dict[Line, str] = {
    Line.LANE: COLOURS["lane"],
    Line.DRIVEWAY: COLOURS["driveway"],
    Line.CROSSWALK: COLOURS["crosswalk"],
    Line.SPEED_BUMP: COLOURS["bump"],
    Line.WHITE: COLOURS["white-line"],
    Line.WHITE_BROKEN: "#c3cad2",
    Line.YELLOW: COLOURS["yellow-line"],
    Line.YELLOW_BROKEN: "#dcbd63",
    Line.STOP_SIGN: COLOURS["stop"],
    Line.EDGE: COLOURS["edge"],
}
# Of curves without a meaning of their own.
SERIES = (
    COLOURS["policy"],
    COLOURS["reference"],
    COLOURS["caution"],
    COLOURS["ghost"],
    COLOURS["accent"],
    "#a33b2e",
    COLOURS["cyclist"],
    "#c4527c",
)


def agent_colour(agent: str) -> str:
    return COLOURS[AGENTS.get(agent, "accent")]
