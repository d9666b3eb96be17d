"""A report as one HTML file, everything inside: texts, tables, charts, scenes, and the code that draws them."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from pipeline.evaluation.tables import motion_table, result_table
from pipeline.viewing.report_charts import (
    Chart,
    curve_charts,
    likelihood_chart,
    realism_chart,
    scene_chart,
    size_chart,
    spread_chart,
    time_chart,
    token_chart,
)
from pipeline.viewing.report_facts import RunFacts, machine_facts, source_commit
from pipeline.viewing.report_scenes import ShownScene
from pipeline.viewing.scene_pack import PAGE, SCRIPTS, vocabulary_header

_PUBLISHED = Path(__file__).with_name("published.yaml")
_PARTS = (*SCRIPTS, "report.js")
_MAX_DEFECTS = 200


def json_for_page(value: Any) -> Markup:
    """JSON that can stand inside a ``script`` element, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026").replace("\u2028", "\\u2028"))


@functools.cache
def _chart_code() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code.replace("</script", "<\\/script")


def _charts(facts: RunFacts) -> dict[str, list[tuple[str, Chart]]]:
    """Titles and specifications by section; sections without data are empty."""
    results = facts.results
    found: dict[str, list[tuple[str, Chart]]] = {"results": [], "scenes": [], "curves": [], "data": [], "time": []}
    if results:
        found["results"] = [
            ("Realism with 95 % intervals over scenes", realism_chart(results)),
            ("Likelihood of every feature", likelihood_chart(results)),
        ]
    if results and any(len(result.scenarios) > 1 for result in results):
        found["scenes"].append(("Realism of single scenes, sorted", spread_chart(results)))
    compared = [result for result in results if result.agent in ("reference", "policy")]
    if len(compared) == 2 and len(set(compared[0].scenarios) & set(compared[1].scenarios)) > 1:
        found["scenes"].append(("The same scenes, two agents", scene_chart(*compared)))
    for curve in facts.curves:
        found["curves"] += [(f"{curve.stage}: {title}", chart) for title, chart in curve_charts(curve)]
    if any(facts.infos.values()):
        found["data"].append(("Agents in a scene", size_chart(facts.infos)))
    if facts.vocabulary is not None:
        found["data"].append(("Where tokens lead", token_chart(facts.vocabulary)))
    found["time"].append(("Time of every stage", time_chart(facts.manifests)))
    return found


def _data_rows(facts: RunFacts) -> list[list[str]]:
    figures = facts.manifests["tokenize"].figures if "tokenize" in facts.manifests else {}
    rows = []
    for split, infos in facts.infos.items():
        agents = sum(info.simulated for info in infos)
        rows.append(
            [
                split,
                f"{len(infos):,}",
                f"{figures.get(f'{split}_rejected', '-')}",
                f"{sum(info.unscorable_reason is not None for info in infos):,}",
                f"{agents / max(1, len(infos)):.1f}",
                f"{max((info.simulated for info in infos), default=0)}",
                f"{sum(info.points for info in infos) / max(1, len(infos)):,.0f}",
            ]
        )
    return rows


def _round_trip_rows(facts: RunFacts) -> list[list[str]]:
    """Errors of re-tokenised motion, by type."""
    if "tokenize" not in facts.manifests:
        return []
    figures = facts.manifests["tokenize"].figures
    names = ("position_mean_m", "position_p99_m", "heading_mean_deg", "heading_p99_deg")
    return [
        [kind, *(f"{figures[f'{kind}_{name}']:.3f}" for name in names)]
        for kind in ("vehicle", "pedestrian", "cyclist")
        if all(isinstance(figures.get(f"{kind}_{name}"), int | float) for name in names)
    ]


def _speed_rows(facts: RunFacts) -> list[list[str]]:
    """Figures per second that stages noted."""
    return [
        [stage, name.replace("_", " "), f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"]
        for stage, manifest in facts.manifests.items()
        for name, value in manifest.figures.items()
        if "per_second" in name and isinstance(value, int | float)
    ]


def _ends(facts: RunFacts) -> list[list[str]]:
    """A table of what trainings ended with, header first, a row a figure."""
    stages = [curve.stage for curve in facts.curves if curve.stage in facts.manifests]
    figures = {stage: facts.manifests[stage].figures for stage in stages}
    names = dict.fromkeys(name for stage in stages for name in figures[stage] if "per_second" not in name)
    rows = []
    for name in names:
        values = [figures[stage].get(name) for stage in stages]
        cells = [f"{value:,.4g}" if isinstance(value, int | float) else "" for value in values]
        rows.append([name.replace("_", " "), *cells])
    return [["figure", *stages], *rows] if rows else []


def render_page(facts: RunFacts, scenes: Sequence[ShownScene], shown_agent: str, notes: Sequence[str] = ()) -> str:
    """The HTML of a report.

    Args:
        facts: of the run. scenes: to be played, chosen by how ``shown_agent`` did in them.
        notes: what the reader should know, such as scenes left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    results = facts.results
    metric = str(results[0].report["metric"]) if results else None
    reports = {result.agent: result.report for result in results}
    charts = _charts(facts)
    specifications = [spec for section in charts.values() for _, spec in section]
    numbered, count = {}, 0
    for section, found in charts.items():
        numbered[section] = [(count + place, title) for place, (title, _) in enumerate(found)]
        count += len(found)
    report: Mapping[str, Any] = facts.validation or {}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        made=time.strftime("%Y-%m-%d %H:%M"),
        commit=source_commit(),
        machine=machine_facts(),
        style=Markup((PAGE / "page.css").read_text() + (PAGE / "report.css").read_text()),
        code=Markup("\n".join((PAGE / name).read_text() for name in _PARTS)),
        chart_code=Markup(_chart_code()),
        charts=numbered,
        chart_data=json_for_page(specifications),
        table_of_agents=result_table(reports),
        table_of_motion=motion_table(reports),
        shown_agent=shown_agent.replace("_", " "),
        metric=metric,
        # Rows of the same metric, if its name is that of a year.
        published=yaml.safe_load(_PUBLISHED.read_text()).get(metric),
        scenes=[(scene, base64.b64encode(scene.content).decode()) for scene in scenes],
        vocabulary=json_for_page(None if facts.vocabulary is None else vocabulary_header(facts.vocabulary)),
        data_rows=_data_rows(facts),
        remarks=facts.remarks,
        round_trip=_round_trip_rows(facts),
        speeds=_speed_rows(facts),
        ends=_ends(facts),
        recipes=[
            (name, manifest.recipe.code, json.dumps(manifest.recipe.config, indent=1, default=str))
            for name, manifest in facts.manifests.items()
        ],
        defects=report.get("list", [])[:_MAX_DEFECTS],
        suspicions=report.get("suspicion_list", [])[:_MAX_DEFECTS],
        notes=list(notes),
    )
