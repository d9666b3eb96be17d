"""Score the generated scenes of the metric's tests with Waymo's own code, and compare ours with stored scores.

    python scripts/checks/official_scores.py            # all scenes; some minutes
    python scripts/checks/official_scores.py lights     # one of them
    python scripts/checks/official_scores.py odd        # odd scenarios: their meta-metric, or why there is none
    python scripts/checks/official_scores.py compare [--oracle ORACLE --scenarios WOMD/validation]

The tests compare the project's metric with these figures. Scoring needs the Waymo wheel and TensorFlow. ``compare``
prints the largest difference of each field, on the generated scenes or on ORACLE: folders of ID.rollouts.binproto
and ID.json, {"2025": {field: value}, "2024": ...}, by Waymo's code.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import read_json, write_json
from data.scene import Scene
from data.scenes_source import open_scenes
from pipeline.evaluation.official_metric import scenario_proto, score_officially
from pipeline.execution.processes import run_isolated
from pipeline.execution.tables import render_table
from submission.protos import Rollouts, read_rollouts, to_proto
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score
from tests.submission.realism.branches import BRANCHES
from tests.submission.realism.odd import ODD, odd_scenario

_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "submission" / "realism"
_STORED = _FOLDER / "official.json"


def _official(name: str) -> dict[str, dict[str, float]]:
    scene, states = BRANCHES[name]()
    message = to_proto(Rollouts(name, scene.agents.id[scene.simulated], states))
    # Entries have wrapped headings; the metric must agree on others too.
    for joint, headings in zip(message.joint_scenes, states[..., 3].tolist(), strict=True):
        for trajectory, values in zip(joint.simulated_trajectories, headings, strict=True):
            trajectory.heading[:] = values
    proto = scenario_proto(scene)
    return {year: score_officially(proto, message, year) for year in ("2025", "2024")}


def _odd() -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name in ODD:
        proto, message = odd_scenario(name)
        try:
            value = score_officially(proto, message, "2025")["metametric"]
            found[name] = value if math.isfinite(value) else str(value)
        # TensorFlow's errors have no common class of their own, and any of them is a refusal.
        except Exception as error:
            found[name] = type(error).__name__
        print(f"{name:24} {found[name]}", flush=True)
    return found


Case = tuple[Scene, torch.Tensor, torch.Tensor, dict[str, dict[str, float]]]


def _generated() -> Iterator[Case]:
    stored = read_json(_STORED)
    for name, make in BRANCHES.items():
        scene, states = make()
        yield scene, scene.agents.id[scene.simulated], states, stored[name]


def _oracle(folder: Path, scenarios: Path) -> Iterator[Case]:
    source = open_scenes(scenarios)
    for file in sorted(folder.rglob("*.rollouts.binproto")):
        (rollouts,) = read_rollouts(file)
        official = json.loads(file.with_name(f"{rollouts.scenario_id}.json").read_text())
        yield source.get(rollouts.scenario_id), rollouts.agent_id, rollouts.states, official


def _compare(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="official_scores.py compare")
    parser.add_argument("--oracle", type=Path, help="folder of stored rollouts and scores")
    parser.add_argument("--scenarios", type=Path, help="their scenarios")
    options = parser.parse_args(arguments)
    if (options.oracle is None) != (options.scenarios is None):
        parser.error("--oracle and --scenarios belong together")
    cases = _oracle(options.oracle, options.scenarios) if options.oracle else _generated()
    years = ("2025", "2024")
    configs = {year: load_config(year) for year in years}
    largest = {field: dict.fromkeys(years, 0.0) for field in METRIC_FIELDS}
    count = 0
    for scene, agent_id, states, official in cases:
        context = prepare_scene(scene)
        count += 1
        for year in years:
            found = score(context, agent_id, states, configs[year]).values
            for field in METRIC_FIELDS:
                difference = abs(float(found[field]) - official[year][field])
                largest[field][year] = max(largest[field][year], difference)
    print(f"{count} sets of rollouts")
    print(
        render_table([["field", *years], *([f, *(f"{largest[f][y]:.1e}" for y in years)] for f in METRIC_FIELDS)])
    )
    return 0


def main(names: list[str]) -> int:
    if names[:1] == ["compare"]:
        return _compare(names[1:])
    if names == ["odd"]:
        write_json(_FOLDER / "odd.json", run_isolated(_odd).value)
        return 0
    unknown = set(names) - set(BRANCHES)
    if unknown:
        print(f"error: {min(unknown)}: no such scene, expected some of {', '.join(BRANCHES)}", file=sys.stderr)
        return 1
    stored = read_json(_STORED) if _STORED.exists() else {}
    for name in names or BRANCHES:
        started = time.perf_counter()
        stored[name] = run_isolated(partial(_official, name)).value
        print(
            f"{name:24} {stored[name]['2025']['metametric']:.6f}  {time.perf_counter() - started:.0f} s", flush=True
        )
        write_json(_STORED, {key: stored[key] for key in BRANCHES if key in stored})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
