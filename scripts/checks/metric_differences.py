"""Largest difference between the project's metric and stored scores of Waymo's code, field by field.

    python scripts/checks/metric_differences.py   # the generated scenes of the tests
    python scripts/checks/metric_differences.py --oracle ORACLE --scenarios WOMD/validation

ORACLE holds folders of ID.rollouts.binproto and ID.json, {"2025": {field: value}, "2024": ...}, by Waymo's code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import read_json
from data.scene import Scene
from data.scenes_source import open_scenes
from pipeline.evaluation.tables import render_table
from submission.protos import read_rollouts
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score
from tests.submission.realism.branches import BRANCHES

_STORED = Path(__file__).resolve().parents[2] / "tests" / "submission" / "realism" / "official.json"

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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


if __name__ == "__main__":
    sys.exit(main())
