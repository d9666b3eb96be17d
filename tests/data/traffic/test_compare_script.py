"""The comparison script, end to end and on numbers known beforehand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "studies" / "compare_traffic.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_figure_and_table(generated: Path, tmp_path: Path) -> None:
    picture = tmp_path / "compare.png"
    done = run(
        "--generated", str(generated / "training"), "--real", str(generated / "validation"), "--out", str(picture)
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    counts = next(line for line in lines if line.startswith("simulated agents per scene"))
    assert "generated" in counts
    assert counts.split()[5] == "6", "one sample a scene"


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    done = run("--generated", str(tmp_path), "--real", str(tmp_path), "--out", str(tmp_path / "x.png"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
