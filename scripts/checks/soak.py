"""Sampling, packing and validating thousands of scenarios: does memory stay flat, does time stay linear?

    python scripts/checks/soak.py --stores runs/demo/tokenize/validation \\
        --checkpoint runs/demo/selfplay/policy.ckpt --scenarios 5000 --out runs/soak

Scenarios of the stores are repeated under new ids, without their futures, as a test split has them. Then
``sample``, ``package`` and ``validate`` run as anybody would, each process under a limit of memory. Prints,
for each of them, speed and memory by tenth of its time, and what that means for the 44,920 scenarios of the
challenge. What is finished is not done again, so that an interrupted soak goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import write_json, write_text
from data.scene import Scene, until_now
from data.store import SceneStore, shard_name, write_shard
from pipeline.execution.console import track
from pipeline.execution.tables import csv_table, numbers, read_table

_ROOT = Path(__file__).resolve().parents[2]
_CHALLENGE = 44_920
_SHARD = 500
_EVERY = 1.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--stores", type=Path, nargs="+", required=True, help="whose scenarios are repeated in turn"
    )
    parser.add_argument("--checkpoint", type=Path, help="policy.ckpt; without one constant velocity is sampled")
    parser.add_argument("--scenarios", type=int, default=5000)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything, some 2 MB a scenario")
    parser.add_argument("--memory_gb", type=float, default=3.0, help="limit of each process")
    parser.add_argument("--options", nargs="*", default=[], help="further options of sample, as name=value")
    options = parser.parse_args(arguments)
    store = options.out / "store"
    _multiply([SceneStore(folder) for folder in options.stores], options.scenarios, store)
    agent = ["--agent", "constant_velocity"]
    if options.checkpoint is not None:
        agent = ["--agent", "policy", "--checkpoint", options.checkpoint]
    further = [f"--{option}" for option in options.options]
    rollouts, archive = options.out / "rollouts", options.out / "submission.tar.gz"
    metadata = _ROOT / "submission" / "metadata.example.yaml"
    commands: dict[str, list[str | Path]] = {
        "sample": [*agent, "--scenarios", store, "--out", rollouts, *further],
        "package": ["--rollouts", rollouts, "--scenarios", store, "--metadata", metadata, "--out", archive],
        "validate": [archive, "--scenarios", store],
    }
    for name, given in commands.items():
        seen = options.out / f"{name}.csv"
        if not seen.exists():
            status = _watched([name, *map(str, given)], seen, options.memory_gb)
            if status:
                print(f"{name} ended with status {status}", file=sys.stderr)
                return status
    _report(options.out, options.scenarios, list(commands), archive)
    return 0


def _multiply(stores: list[SceneStore], count: int, out: Path) -> None:
    shards = -(-count // _SHARD)
    for shard in range(shards):
        path = out / shard_name("testing", shard, shards)
        if path.exists():
            continue

        def scenes(first: int = shard * _SHARD) -> Iterator[Scene]:
            for number in range(first, min(first + _SHARD, count)):
                store = stores[number % len(stores)]
                # As a test split has it: no future, another id.
                scene = until_now(store[number // len(stores) % len(store)])
                yield dataclasses.replace(scene, scenario_id=f"{number:016x}")

        write_shard(path, track(scenes(), f"store {shard + 1}/{shards}", _SHARD, " scene"))


def _watched(command: list[str], seen: Path, memory_gb: float) -> int:
    """Run a command of the pipeline and note its memory every second; returns its exit status."""

    def limited() -> None:
        # What a process allocates for itself. Its address space is no measure: TensorFlow reserves a lot of it.
        limit = int(memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    started = time.perf_counter()
    rows: list[list[object]] = [["seconds", "memory_mb", "largest_mb", "done"]]
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *command], preexec_fn=limited)
    while process.poll() is None:
        sizes = [own_mb(number) for number in _family(process.pid)]
        seconds = round(time.perf_counter() - started, 1)
        rows.append([seconds, round(sum(sizes)), round(max(sizes, default=0)), _done(command)])
        time.sleep(_EVERY)
    if process.returncode == 0:
        write_text(seen, csv_table(rows))
    return process.returncode


def _done(command: list[str]) -> int:
    """Files that ``sample`` has finished, the only progress that shows outside."""
    if command[0] != "sample":
        return 0
    folder = Path(command[command.index("--out") + 1])
    return sum(1 for _ in folder.glob("rollouts.binproto-*")) if folder.exists() else 0


def _family(process: int) -> list[int]:
    """A process and all that it started."""
    found, pending = [], [process]
    while pending:
        number = pending.pop()
        found.append(number)
        try:
            tasks = list(Path(f"/proc/{number}/task").iterdir())
            pending.extend(int(child) for task in tasks for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def own_mb(process: int) -> float:
    """Memory that a process fills itself, pages that it shares divided among those that share them.

    Pages of files that are mapped do not count: the system takes them back when it wants to. Every scene of a
    store that was read once stays among them for as long as there is room.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss_Anon:")), 0.0)


def _report(out: Path, count: int, names: list[str], archive: Path) -> None:
    figures: dict[str, object] = {"scenarios": count, "archive_gb": archive.stat().st_size / 1e9}
    print("| | time, s | scenarios/s | memory by tenth of the time, MB | files done by then | for 44,920 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        rows = [numbers(row) for row in read_table(out / f"{name}.csv")[1]]
        total = rows[-1]["seconds"]
        tenths = [[row for row in rows if tenth <= 10 * row["seconds"] / total < tenth + 1] for tenth in range(10)]
        memory = [max((row["memory_mb"] for row in part), default=0.0) for part in tenths]
        done = [part[-1]["done"] if part else 0.0 for part in tenths]
        pace = " ".join(f"{value:.0f}" for value in done) if any(done) else ""
        cells = [f"{total:.0f}", f"{count / total:.2f}", " ".join(f"{value:.0f}" for value in memory), pace]
        print(f"| {name} | {' | '.join(cells)} | {total / count * _CHALLENGE / 3600:.1f} h |")
        figures[name] = {"seconds": total, "memory_mb": memory, "files": done}
    size = archive.stat().st_size / 1e9
    print(f"\narchive {size:.3f} GB, {size / count * _CHALLENGE:.1f} GB for 44,920")
    write_json(out / "soak.json", figures)
    print(json.dumps({"largest_process_mb": _largest(out, names)}))


def _largest(out: Path, names: list[str]) -> float:
    tables = (read_table(out / f"{name}.csv")[1] for name in names)
    return max((numbers(row)["largest_mb"] for rows in tables for row in rows), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
