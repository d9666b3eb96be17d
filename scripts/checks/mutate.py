"""Change the code in one place after the other, and see whether the tests notice.

    python scripts/checks/mutate.py --sample 50            # so many changes of each package, drawn by --seed
    python scripts/checks/mutate.py --sample 100           # goes on: what has a result is not tried again
    python scripts/checks/mutate.py --all                  # every change: days
    python scripts/checks/mutate.py --mistakes             # the written list, scripts/checks/mistakes.yaml
    python scripts/checks/mutate.py --sample 50 --again    # survivors once more, after tests were added

Changes are those of mutmut, and of tensor code: another reduction, a step of a chain left out
(``scripts/checks/mutants.py``). Every one is made in a copy of the repository, and the tests that execute its line
run, the quickest first, until one fails. Which these are is measured once for each of --tests; --map measures anew.
Results are lines of OUT/results.jsonl; a change whose file and text are the same keeps its result. Prints what
survived, and the fraction caught with its 95 % interval (Wilson); the exit status is 1 if anything survived that
``scripts/checks/changes_nothing.yaml`` does not explain. Needs `make setup-dev`.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import math
import os
import py_compile
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.checks.mutants import PACKAGES, ROOT, Change, Made, changes_of, sources, written
from scripts.checks.reach import OPTIONS, Reach, measure

_MISTAKES = Path(__file__).with_name("mistakes.yaml")
_NOTHING = Path(__file__).with_name("changes_nothing.yaml")
_TESTS = (
    *("tests/data", "tests/models", "tests/submission", "tests/pipeline/agents"),
    *("tests/pipeline/evaluation", "tests/pipeline/fitting", "tests/pipeline/selfplay"),
    *("tests/pipeline/simulator", "tests/pipeline/studies/planners"),
)
_COPIED = ("data", "models", "submission", "pipeline", "tests", "scripts", "deploy", "docs")
_FILES = ("pyproject.toml", "Makefile", "README.md")
# Imported before every change is tried, in a process that then forks: they take longer than most tests.
_PRELOADED = (
    *("torch", "lightning", "numpy", "pytest", "hypothesis"),
    *("pyarrow.parquet", "google.protobuf", "scipy", "yaml", "shapely", "gymnasium"),
)


def _drawn(files: Sequence[str], sample: int | None, seed: int) -> list[Made]:
    """So many changes of each package. The draw goes by what a change is, so that it outlives others' edits."""
    by_package = defaultdict(list)
    for file in files:
        for change, made in changes_of(file):
            by_package[change.package].append((change, made))
    print({package: len(found) for package, found in by_package.items()}, file=sys.stderr)

    def rank(entry: Made) -> str:
        return hashlib.sha256(f"{seed}/{entry[0].name}".encode()).hexdigest()

    ranked = [sorted(found, key=rank)[:sample] for found in by_package.values()]
    # In turns, so that an interrupted study has some of every package.
    return [entry for turn in itertools.zip_longest(*ranked) for entry in turn if entry]


# --- the tests that execute a line


def _digest(copy: Path, places: Sequence[str]) -> str:
    """Of all Python files in some folders or files; of a test, of its file."""
    digest = hashlib.sha256()
    for name in places:
        place = copy / name.partition("::")[0]
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _reach(copy: Path, folders: Sequence[str], out: Path, anew: bool) -> Reach:
    """What was measured before, and what is missing of it."""
    seconds: dict[str, float] = {}
    lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        kept = out / ("reach-" + re.sub(r"\W+", "-", folder) + ".json")
        # Other tests reach other lines; other code moves them.
        state = _digest(copy, [folder, *PACKAGES])
        found = json.loads(kept.read_text()) if kept.exists() and not anew else {}
        if found.get("state") != state:
            print(f"measuring what is executed by {folder}", file=sys.stderr)
            if _forked(functools.partial(measure, copy, folder, kept), kept.with_suffix(".log"), math.inf):
                raise SystemExit(f"error: the tests could not be run; see {kept.with_suffix('.log')}")
            found = {**json.loads(kept.read_text()), "state": state}
            kept.write_text(json.dumps(found))
        seconds |= found["seconds"]
        for file, by_line in found["lines"].items():
            for line, tests in by_line.items():
                lines[file][line] += tests
    return Reach(seconds, lines)


# --- trying changes


def _forked(work: Callable[[], int], log: Path, limit: float) -> int | None:
    """Exit status of ``work`` in a child whose output goes to ``log``; None if it took longer than ``limit`` s."""
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = work()
        finally:
            os._exit(status)
    ends = time.monotonic() + limit
    try:
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return None
    finally:
        # Also what the tests have started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _run_tests(copy: Path, tests: Sequence[str]) -> int:
    import pytest

    os.chdir(copy)
    return int(pytest.main([*OPTIONS, *tests]))


def _try(copy: Path, change: Change, text: str, reach: Reach, budget: float, log: Path) -> dict[str, Any]:
    """Whether the tests notice one change of the copy."""
    tests = reach.tests(change, budget)
    path = copy / change.file
    before = path.read_text()
    begun = time.monotonic()
    try:
        path.write_text(text)
        limit = 60 + 6 * sum(reach.seconds[test] for test in tests)
        status = _forked(lambda: _run_tests(copy, tests), log, limit) if tests else 0
    finally:
        path.write_text(before)
    said = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE) if tests else None
    outcome = "timeout" if status is None else "caught" if status else "survived" if tests else "unreached"
    by = said[1] if said else None
    return {**asdict(change), "name": change.name, "outcome": outcome, "by": by, "tests": len(tests),
            "seconds": round(time.monotonic() - begun, 1)}  # fmt: skip


# --- figures


def _changes_nothing(found: Mapping[str, Any], entries: Iterable[Mapping[str, str]]) -> bool:
    """Whether an entry explains a survivor: the same change, in a statement that contains the entry's code."""
    lines = (ROOT / found["file"]).read_text().splitlines()
    statement = "\n".join(lines[found["line"] - 1 : found["end"]])
    return any(
        all(entry[key] == found[key] for key in ("file", "old", "new")) and entry["code"] in statement
        for entry in entries
    )


def _report(results: Iterable[Mapping[str, Any]], nothing: Sequence[Mapping[str, str]]) -> int:
    """Print survivors and shares; the number of survivors that no reason is written for."""
    by_package: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = 0
    for found in results:
        reason = _changes_nothing(found, nothing)
        noticed = found["outcome"] in ("caught", "timeout")
        package = Change(**{key: found[key] for key in Change.__dataclass_fields__}).package
        by_package[package]["caught" if noticed else "changes nothing" if reason else "survived"] += 1
        if not noticed and not reason:
            survivors += 1
            place = f"{found['file']}:{found['line']}"
            print(f"{found['name']}  {place}  {found['outcome']}: {found['old']}  ->  {found['new']}")
    print("| package | tried | caught | changes nothing | survived | fraction caught, 95 % interval |")
    print("|---|---|---|---|---|---|")
    total: Counter[str] = Counter()
    for counts in by_package.values():
        total += counts
    for package, counts in {**by_package, "all": total}.items():
        tried = counts["caught"] + counts["survived"]
        low, high = binomtest(counts["caught"], tried).proportion_ci(method="wilson") if tried else (0.0, 1.0)
        print(
            f"| {package} | {sum(counts.values())} | {counts['caught']} | {counts['changes nothing']} "
            f"| {counts['survived']} | {counts['caught'] / max(tried, 1):.1%} ({low:.1%} to {high:.1%}) |"
        )
    return survivors


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=50, help="changes of each package")
    parser.add_argument("--all", action="store_true", help="every change")
    parser.add_argument("--mistakes", action="store_true", help="the written list instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", nargs="+", default=PACKAGES, help="files or folders to change")
    parser.add_argument("--tests", nargs="+", default=_TESTS, help="tests to measure and run")
    parser.add_argument("--map", action="store_true", help="measure anew which tests execute what")
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for a change, at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in _PRELOADED:
        importlib.import_module(name)
    sys.path = [place for place in sys.path if Path(place).resolve() not in (ROOT, ROOT / "scripts")]
    files = [file for file in sources() if any(file.startswith(only) for only in options.only)]
    drawn = (
        written(_MISTAKES, files)
        if options.mistakes
        else _drawn(files, None if options.all else options.sample, options.seed)
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in _COPIED:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        for name in _FILES:
            shutil.copy(ROOT / name, copy)
        # Bytecode goes by the content of its source: by time and size a changed file could pass for the one before.
        compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        sys.path.insert(0, str(copy))
        reach = _reach(copy, options.tests, out, options.map)
        return _study(drawn, copy, reach, out, options)


def _study(drawn: Sequence[Made], copy: Path, reach: Reach, out: Path, options: argparse.Namespace) -> int:
    """Try what has no result yet, and print all results of the draw."""
    kept = out / "results.jsonl"
    known = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            found = json.loads(line)
            known[found["name"]] = found
    ends = time.monotonic() + 60 * options.minutes
    for change, made in drawn:
        before = known.get(change.name)
        if before and not (options.again and before["outcome"] in ("survived", "unreached")):
            continue
        if time.monotonic() > ends:
            break
        found = _try(copy, change, made(), reach, options.budget, out / "last.log")
        known[change.name] = found
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
        line = f"{found['outcome']:9}  {change.file}:{change.line}  {change.old}  ->  {change.new}  [{found['by']}]"
        print(line[:200], flush=True)
    # Lines as they are now; a result is as old as its file.
    results = [{**known[change.name], **asdict(change)} for change, _ in drawn if change.name in known]
    return 1 if _report(results, yaml.safe_load(_NOTHING.read_text())) else 0


if __name__ == "__main__":
    sys.exit(main())
