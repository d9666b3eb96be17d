"""Kill ``stages`` at random moments again and again, let it finish, and compare with an undisturbed run.

    python scripts/checks/kill_test.py --kills 10 --preset smoke

Every file must be the same to the bit, manifests and notes of source files apart, which carry ids and times. Prints
each kill, the differing files if there are any, and exits with status 1 then.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import sha256_of

_ROOT = Path(__file__).resolve().parents[2]
_NOT_COMPARED = {"manifest.json", "started.json", ".lock"}
# Curves for TensorBoard carry times, too.
_CURVES = "events.out.tfevents"


def _start(folder: Path, name: str, preset: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "stages", "--preset", preset]
    command += ["--run", name, "--folder", str(folder)]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True)


def _artefacts(run: Path) -> dict[str, str]:
    files = (
        path
        for path in run.rglob("*")
        if path.is_file()
        and path.name not in _NOT_COMPARED
        and path.suffix != ".source"
        and not path.name.startswith(_CURVES)
    )
    return {path.relative_to(run).as_posix(): sha256_of(path) for path in files}


def _finish(folder: Path, name: str, preset: str) -> float:
    started = time.perf_counter()
    if status := _start(folder, name, preset).wait():
        sys.exit(f"error: the run {name} ended with status {status}; see {folder / name}.log")
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how often the run is killed")
    parser.add_argument("--preset", default="smoke", help="preset of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill-test"), help="where both runs are written")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = _finish(folder, "undisturbed", options.preset)
    print(f"undisturbed: {whole:.0f} s", flush=True)
    rng = random.Random(options.seed)
    for number in range(options.kills):
        # On the whole the kills spread over the run; starting takes some seconds each time.
        wait = 5.0 + rng.uniform(0.0, 1.8) * whole / options.kills
        process = _start(folder, "killed", options.preset)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            # Half of them Ctrl-C, which goes to all processes of the run, half kill -9 of the parent alone.
            if number % 2:
                os.killpg(process.pid, signal.SIGINT)
                kind = "Ctrl-C"
            else:
                os.kill(process.pid, signal.SIGKILL)
                kind = "kill -9"
            process.wait()
            done = sorted(path.parent.name for path in (folder / "killed").glob("*/manifest.json"))
            print(f"{kind} after {wait:.1f} s; finished so far: {', '.join(done) or 'nothing'}", flush=True)
    rest = _finish(folder, "killed", options.preset)
    print(f"went on to the end in {rest:.0f} s", flush=True)
    one, two = _artefacts(folder / "undisturbed"), _artefacts(folder / "killed")
    different = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    print(f"{len(one)} files, {len(different)} differ")
    for name in different:
        print(f"  {name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
