"""Coverage-guided fuzzing of everything that reads files from outside, by atheris.

    python scripts/checks/fuzz.py --seconds 300 [--readers tfrecord store ...] [--out FOLDER]
    python scripts/checks/fuzz.py --make-seeds

Starts from the good files in ``tests/hostile/seeds`` and prints a Markdown table: executions, time, places of our
code reached, crashes. An input that ends in anything but a verdict, or takes more than 2 GB or 20 s, stays in
FOLDER; put it into ``tests/hostile/found`` with what mends it. Only Python code is watched; what protobuf, Arrow
and torch do inside runs without guidance. ``--make-seeds`` writes the good files anew.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))

_SEEDS = _ROOT / "tests" / "hostile" / "seeds"
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERAGE = re.compile(r"#(\d+)\s.*?cov: (\d+)")
_LIMIT_MB, _LIMIT_SECONDS, _LONGEST = 2048, 20, 1 << 16


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--readers", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of inputs that were kept")
    parser.add_argument("--make-seeds", action="store_true", help="write the good files and end")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.inside:
        _fuzz(options.inside, rest)
        return 0
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.make_seeds:
        from tests.hostile.seeds import make_seeds

        _SEEDS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in make_seeds(Path(folder)).items():
                (_SEEDS / name).write_bytes(content)
        return 0
    names = sorted(path.name for path in _SEEDS.iterdir())
    wrong = [name for name in options.readers or [] if name not in names]
    if wrong:
        parser.error(f"--readers {wrong[0]}: expected some of {', '.join(names)}")
    print(
        "| reader | executions | seconds | places reached | crashes |\n| --- | --- | --- | --- | --- |", flush=True
    )
    crashes = 0
    for name in options.readers or names:
        crashes += _run(name, options.seconds, options.out / name)
    return 1 if crashes else 0


def _run(name: str, seconds: int, out: Path) -> int:
    """Fuzz a reader in a process of its own, which libFuzzer ends; again after a crash. Returns crashes."""
    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes((_SEEDS / name).read_bytes())
    executions, reached, started = 0, 0, time.monotonic()
    while (left := seconds - (time.monotonic() - started)) > 1:
        ended = subprocess.run(
            [
                *(sys.executable, __file__, "--inside", name, str(corpus), f"-max_total_time={round(left)}"),
                *(f"-artifact_prefix={out}/", f"-rss_limit_mb={_LIMIT_MB}", f"-timeout={_LIMIT_SECONDS}"),
                f"-max_len={_LONGEST}",
            ],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        done, seen = _DONE.search(ended.stderr), _COVERAGE.findall(ended.stderr)
        executions += int(done[1]) if done else int(seen[-1][0]) if seen else 0
        reached = max(reached, int(seen[-1][1]) if seen else 0)
        if ended.returncode == 0:
            break
        (out / f"crash-{time.time_ns()}.log").write_text(ended.stderr)
    crashes = len(list(out.glob("crash-*.log")))
    taken = time.monotonic() - started
    print(f"| {name} | {executions} | {taken:.0f} | {reached} | {crashes} |", flush=True)
    return crashes


def _fuzz(name: str, options: list[str]) -> None:
    import atheris

    # What is imported here is rewritten to say which of its lines run.
    with atheris.instrument_imports(include=["data", "models", "submission", "pipeline", "tests"]):
        from tests.hostile.readers import READERS

    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        atheris.Setup([sys.argv[0], *options], lambda content: reader(content, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
