"""Score the generated scenes of tests/submission/realism with Waymo's own code and store what it says.

    python scripts/checks/official_scores.py            # all scenes; some minutes
    python scripts/checks/official_scores.py lights     # one of them
    python scripts/checks/official_scores.py odd        # odd scenarios: their meta-metric, or why there is none

The tests compare the project's metric with these figures. Needs the Waymo wheel and TensorFlow.
"""

from __future__ import annotations

import math
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import read_json, write_json
from pipeline.evaluation.official_metric import scenario_proto, score_officially
from pipeline.execution.isolation import run_isolated
from submission.protos import Rollouts, to_proto
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


def main(names: list[str]) -> int:
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
