"""Charts of a report as Vega-Lite specifications: Altair checks them, the browser draws them as SVG.

Colours are those of ``page/page.css``, by name, so that they follow the page between light and dark. Agents differ
by shape as well as by colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from data.store import SceneInfo
from data.vocabulary import TYPE_NAMES, Vocabulary
from pipeline.drawing.palette import AGENTS, MARKS
from pipeline.execution.manifest import Manifest
from pipeline.viewing.report_facts import AgentResult, Curve
from submission.realism.config import COMPONENTS

Chart = dict[str, Any]

_WIDTH = 560
# Vega's names of matplotlib's marks.
_SHAPES = {"s": "square", "D": "diamond", "^": "triangle-up", "o": "circle"}
_TYPE_COLOURS = ("vehicle", "pedestrian", "cyclist")
_MAX_POINTS = 400
# What is drawn of each training, and its title; rows beyond these stay in metrics.csv and TensorBoard.
_SERIES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "pretrain": (
        ("loss, nats a token", ("loss", "validation_cross_entropy")),
        ("accuracy of tokens", ("validation_top1", "validation_top5")),
        ("realism in closed loop", ("validation_realism",)),
    ),
    "selfplay": (
        ("anchor, nats a decision", ("kl", "entropy", "log_likelihood")),
        (
            "reward of an agent in 8 s, by term",
            ("reward_goal", "reward_collision", "reward_off_road", "reward_red_light", "reward_likelihood"),
        ),
        ("share of agents", ("collision_rate", "off_road_rate", "red_light_rate", "goal_rate")),
        ("realism in closed loop", ("evaluation_realism",)),
        (
            "speed after 8 s beside the log's, share standing",
            ("evaluation_speed_ratio_8s", "evaluation_standing", "evaluation_log_standing"),
        ),
        ("explained variance, clip fraction", ("explained_variance", "clip_fraction")),
    ),
}
_SERIES["finetune"] = _SERIES["pretrain"]
_LINES = ("accent", "pedestrian", "cyclist", "sdc", "caution")


def _colour(name: str) -> str:
    return f"var(--{name})"


def _agent_scales(agents: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    colours = [_colour(AGENTS.get(agent, "accent")) for agent in agents]
    shapes = [_SHAPES.get(MARKS.get(agent, ""), "cross") for agent in agents]
    names = [agent.replace("_", " ") for agent in agents]
    legend = alt.Legend(title=None, orient="top")
    return (
        alt.Color("agent:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("agent:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def _finished(chart: alt.Chart | alt.LayerChart, height: int, width: int = _WIDTH) -> Chart:
    ink, rule = _colour("ink"), _colour("rule")
    axis = {
        "labelColor": ink,
        "titleColor": ink,
        "tickColor": rule,
        "domainColor": rule,
        "gridColor": rule,
        "labelLimit": 260,
    }
    spec: Chart = (
        chart.properties(width=width, height=height)
        .configure(background="transparent", font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(**axis)
        .configure_legend(labelColor=ink, titleColor=ink)
        .configure_title(color=ink)
        .to_dict()
    )
    return spec


def realism_chart(results: Sequence[AgentResult]) -> Chart:
    """Meta-metric of every agent with its interval."""
    rows = []
    for result in results:
        low, high = result.report["intervals"]["metametric"]
        value = result.report["metrics"]["metametric"]
        rows.append({"agent": result.agent.replace("_", " "), "realism": value, "low": low, "high": high})
    base = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("agent:N", sort=None, title=None))
    colour, shape = _agent_scales([result.agent for result in results])
    tooltip = ["agent", *(alt.Tooltip(name, format=".4f") for name in ("realism", "low", "high"))]
    interval = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="realism meta-metric", scale=alt.Scale(zero=False)), x2="high:Q", color=colour
    )
    point = base.mark_point(size=110, filled=True).encode(
        x="realism:Q", color=colour.legend(None), shape=shape.legend(None), tooltip=tooltip
    )
    return _finished(interval.encode(color=colour.legend(None)) + point, 30 * len(rows))


def likelihood_chart(results: Sequence[AgentResult]) -> Chart:
    """Likelihood of every feature for every agent, with intervals."""
    rows = []
    for result in results:
        for name in COMPONENTS:
            field = f"{name}_likelihood"
            low, high = result.report["intervals"][field]
            rows.append(
                {
                    "agent": result.agent.replace("_", " "),
                    "feature": name.removesuffix("_indication").replace("_", " "),
                    "likelihood": result.report["metrics"][field],
                    "low": low,
                    "high": high,
                }
            )
    colour, shape = _agent_scales([result.agent for result in results])
    base = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("feature:N", sort=None, title=None), yOffset="agent:N")
    tooltip = ["agent", "feature", *(alt.Tooltip(name, format=".4f") for name in ("likelihood", "low", "high"))]
    interval = base.mark_rule().encode(
        x=alt.X("low:Q", title="likelihood", scale=alt.Scale(domain=[0, 1])), x2="high:Q", color=colour
    )
    point = base.mark_point(size=55, filled=True).encode(
        x="likelihood:Q", color=colour, shape=shape, tooltip=tooltip
    )
    return _finished(interval + point, 44 * len(COMPONENTS))


def spread_chart(results: Sequence[AgentResult]) -> Chart:
    """Realism of every scene, sorted, for every agent: where an agent fails a few scenes or all of them."""
    rows = []
    for result in results:
        values = sorted(row["metametric"] for row in result.scenarios.values())
        step = max(1, len(values) // _MAX_POINTS)
        for rank, value in list(enumerate(values))[::step]:
            share = (rank + 0.5) / len(values)
            rows.append({"agent": result.agent.replace("_", " "), "share": share, "realism": value})
    colour, _ = _agent_scales([result.agent for result in results])
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=2, interpolate="step")
        .encode(
            x=alt.X("share:Q", title="share of scenes, worst first", axis=alt.Axis(format="%")),
            y=alt.Y("realism:Q", title="realism of the scene", scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=["agent", alt.Tooltip("share", format=".0%"), alt.Tooltip("realism", format=".4f")],
        )
    )
    return _finished(chart, 240)


def scene_chart(first: AgentResult, second: AgentResult) -> Chart:
    """Realism of every scene for two agents, against each other."""
    common = sorted(set(first.scenarios) & set(second.scenarios))
    shown = common[:: max(1, len(common) // _MAX_POINTS)]
    pairs = [(first.scenarios[name]["metametric"], second.scenarios[name]["metametric"]) for name in shown]
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(scenario=shown)
    scale = alt.Scale(zero=False)
    points = (
        alt.Chart(table)
        .mark_point(size=45, color=_colour("accent"))
        .encode(
            x=alt.X("first:Q", title=f"realism, {first.agent.replace('_', ' ')}", scale=scale),
            y=alt.Y("second:Q", title=f"realism, {second.agent.replace('_', ' ')}", scale=scale),
            tooltip=["scenario", alt.Tooltip("first", format=".4f"), alt.Tooltip("second", format=".4f")],
        )
    )
    values = [value for pair in pairs for value in pair]
    ends = pd.DataFrame({"first": [min(values), max(values)], "second": [min(values), max(values)]})
    same = alt.Chart(ends).mark_line(strokeDash=[4, 4], color=_colour("faint")).encode(x="first:Q", y="second:Q")
    return _finished(same + points, 320, 360)


def curve_charts(curve: Curve) -> list[tuple[str, Chart]]:
    """Titles and charts of a training, a panel for each group of columns that it has."""
    axis = "agent_steps" if "agent_steps" in curve.columns else "step"
    charts = []
    for title, wanted in _SERIES[curve.stage]:
        # A single value is no curve; it is in the table of what trainings ended with.
        names = [name for name in wanted if sum(name in row for row in curve.rows) > 1]
        rows = []
        for name in names:
            points = [(row[axis], row[name]) for row in curve.rows if axis in row and name in row]
            step = max(1, len(points) // _MAX_POINTS)
            rows += [{"step": x, "value": y, "series": _series_name(name)} for x, y in points[::step]]
        if not rows:
            continue
        names = [_series_name(name) for name in names]
        colours = [_colour(name) for name in _LINES[: len(names)]]
        legend = alt.Legend(title=None, orient="top", columns=3) if len(names) > 1 else None
        colour = alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend)
        dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names), legend=legend)
        lines = (
            alt.Chart(pd.DataFrame(rows))
            .mark_line(strokeWidth=1.8, point=len(rows) < 12)
            .encode(
                x=alt.X("step:Q", title=axis.replace("_", " "), axis=alt.Axis(format="~s")),
                y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
                color=colour,
                strokeDash=dash,
                tooltip=["series", alt.Tooltip("step", format=","), alt.Tooltip("value", format=".4g")],
            )
        )
        charts.append((title, _finished(lines, 190, 380)))
    return charts


def _series_name(column: str) -> str:
    for prefix in ("reward_", "evaluation_"):
        column = column.removeprefix(prefix)
    return column.removesuffix("_rate").replace("validation_", "held-out ").replace("_", " ")


def size_chart(infos: Mapping[str, Sequence[SceneInfo]]) -> Chart:
    """How many agents scenes have to simulate, by split."""
    rows = [{"split": split, "agents": info.simulated} for split, found in infos.items() for info in found]
    # Counted here: a training split has half a million scenes.
    table = pd.DataFrame(rows)
    table["from"] = table["agents"] // 10 * 10
    table["to"] = table["from"] + 10
    counted = table.groupby(["split", "from", "to"]).size().reset_index(name="scenes")
    counted["share"] = counted["scenes"] / counted.groupby("split")["scenes"].transform("sum")
    chart = (
        alt.Chart(counted)
        .mark_bar(color=_colour("accent"))
        .encode(
            x=alt.X("from:Q", bin=alt.Bin(binned=True, step=10), title="agents to simulate"),
            x2="to:Q",
            y=alt.Y("share:Q", title="share of scenes", axis=alt.Axis(format="%")),
            row=alt.Row("split:N", title=None, sort=list(infos), header=alt.Header(labelColor=_colour("ink"))),
            tooltip=["split", "from", "to", "scenes"],
        )
    )
    return _finished(chart, 80)


def token_chart(vocabulary: Vocabulary) -> Chart:
    """Where every token of the vocabulary ends, by type of agent."""
    rows = [
        {
            "type": name,
            "token": token,
            "forward": round(x, 3),
            "left": round(y, 3),
            "turn": round(turn * 57.29578, 1),
        }
        for name, ends in zip(TYPE_NAMES, vocabulary.poses[:, :, -1].tolist(), strict=True)
        for token, (x, y, turn) in enumerate(ends)
    ]
    colours = [_colour(name) for name in _TYPE_COLOURS]
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_point(size=16, filled=True, opacity=0.7)
        .encode(
            x=alt.X("forward:Q", title="metres ahead"),
            y=alt.Y("left:Q", title="metres to the left"),
            color=alt.Color("type:N", scale=alt.Scale(domain=list(TYPE_NAMES), range=colours), legend=None),
            column=alt.Column(
                "type:N", title=None, sort=list(TYPE_NAMES), header=alt.Header(labelColor=_colour("ink"))
            ),
            tooltip=["type", "token", "forward", "left", "turn"],
        )
        .resolve_scale(x="independent", y="independent")
    )
    return _finished(chart, 200, 220)


def time_chart(manifests: Mapping[str, Manifest]) -> Chart:
    """Seconds of every stage."""
    rows = [
        {"stage": name, "seconds": manifest.seconds, "peak MB": manifest.peak_memory_mb}
        for name, manifest in manifests.items()
    ]
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(color=_colour("accent"))
        .encode(
            x=alt.X("seconds:Q", title="seconds"),
            y=alt.Y("stage:N", sort=None, title=None),
            tooltip=["stage", "seconds", "peak MB"],
        )
    )
    return _finished(chart, 22 * len(rows))
