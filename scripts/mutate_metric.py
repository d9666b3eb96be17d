"""Change the realism metric in one place after the other, and see whether the tests notice.

    python scripts/mutate_metric.py

Every change is made in a copy of the repository. Prints which test caught it; the exit status is 1 if one survived.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TESTS = ("tests/submission/realism/test_branches.py", "tests/submission/realism/test_parts.py")
_FOLDERS = ("data", "submission", "tests", "pipeline", "models")
_PLACE = Path("submission/realism")

# (module, what stands there, what is put in its place)
MUTATIONS = (
    ("estimators", "right=True", "right=False"),
    ("estimators", "nan=histogram.high", "nan=histogram.low"),
    ("estimators", "torch.log(smoothed.sum(-1, keepdim=True))", "torch.log(counts.sum(-1, keepdim=True))"),
    ("estimators", "Histogram(-0.5, 1.5, 2,", "Histogram(-0.5, 1.5, 4,"),
    ("kinematics", "valid[..., 2:] & valid[..., :-2]", "valid[..., 2:] | valid[..., :-2]"),
    ("kinematics", "torch.remainder(angle + math.pi, 2 * math.pi) - math.pi", "angle"),
    ("kinematics", "(values[..., 2:] - values[..., :-2]) / 2", "(values[..., 2:] - values[..., 1:-1])"),
    ("objects", "_ROUNDING = 0.7", "_ROUNDING = 0.6"),
    ("objects", "(yaw_difference <= _MAX_YAW)", "(yaw_difference <= 2 * _MAX_YAW)"),
    ("objects", "overlap < -_SMALL_OVERLAP", "overlap < _SMALL_OVERLAP"),
    ("objects", "torch.where(following, gap, gap + FAR)", "torch.where(following, gap + FAR, gap)"),
    ("objects", "evaluated, None] & boxes.valid[None]", "evaluated, None] | boxes.valid[None]"),
    ("objects", "lower <= upper.amin(2, keepdim=True) + _MARGIN", "lower <= upper.amin(2, keepdim=True) - 1"),
    ("road_edge", "_Z_STRETCH = 3.0", "_Z_STRETCH = 1.0"),
    ("road_edge", "closed &= length == longest", "closed &= length <= longest"),
    ("road_edge", "edges.convex_before[nearest], torch.maximum", "~edges.convex_before[nearest], torch.maximum"),
    ("road_edge", "z = (-height)", "z = height"),
    ("road_edge", ".view(corners.shape[:-1]).amax(-1)", ".view(corners.shape[:-1]).amin(-1)"),
    ("road_edge", "largest = torch.hypot(planar + r,", "largest = torch.hypot(planar - r,"),
    ("red_light", "(state == LightState.STOP) | (state == LightState.ARROW_STOP)", "(state == LightState.STOP)"),
    ("red_light", "length[feature] < longest", "length[feature] <= longest"),
    ("red_light", "to_point + along if bug_compatible", "to_point - along if bug_compatible"),
    ("red_light", "behind[..., :-1] & ahead[..., 1:]", "behind[..., :-1]"),
    ("features", "offroad=edge > 0.0", "offroad=edge > -1.0"),
    ("features", "agents.size[order, CURRENT_INDEX]", "agents.size[order, 0]"),
    ("features", "slice(None) if context.bug_compatible else scored", "scored"),
    ("score", "valid if ttc_all_types else valid & vehicle", "valid"),
    ("score", "(getattr(sim, field) & valid).any(-1)", "getattr(sim, field).any(-1)"),
    ("score", "sim.displacement.mean(-1).min()", "sim.displacement.amin(0).mean()"),
    ("score", '"traffic_light_violation" else valid', '"traffic_light_violation" else valid & vehicle'),
)  # fmt: skip


def _copy(target: Path) -> None:
    for name in _FOLDERS:
        shutil.copytree(_ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", target)


def _first_failure(folder: Path) -> str | None:
    """The first test that fails, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *_TESTS]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.returncode:
        return None
    found = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else "the tests do not run"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy(copy)
        if failure := _first_failure(copy):
            print(f"error: {failure} fails without any change", file=sys.stderr)
            return 1
        survivors = 0
        for module, old, new in MUTATIONS:
            path = copy / _PLACE / f"{module}.py"
            text = path.read_text()
            if text.count(old) != 1:
                print(f"error: {module}: {old!r} occurs {text.count(old)} times, expected once", file=sys.stderr)
                return 1
            path.write_text(text.replace(old, new))
            caught = _first_failure(copy)
            path.write_text(text)
            survivors += caught is None
            print(
                f"{'SURVIVED' if caught is None else 'caught':8}  {module}: {old}  ->  {new}  [{caught}]",
                flush=True,
            )
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} changes caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
