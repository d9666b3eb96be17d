"""Which tests execute what, for ``scripts/checks/mutate.py``: measured by running all of them once."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pluggy

from scripts.checks.mutants import PACKAGES, ROOT, Change, sources

OPTIONS = (
    *("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-o", "addopts=--strict-markers --import-mode=importlib"),
)


@dataclass(frozen=True)
class Reach:
    """Which tests execute what, measured by one run of all.

    Attributes:
        seconds: of every test. lines: of every file, the tests that execute each of its lines.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]

    def tests(self, change: Change, budget: float) -> list[str]:
        """Tests that execute the change, quick ones first, those of the module's own files before others.

        What is executed on import, in whichever test that happens, is left to the tests of the lines that name it,
        and to those that name it themselves: a test of a table of constants executes no line of the code.
        """
        on_import = _on_import(change)
        found = self._naming(change) if on_import else self._at(change.file, range(change.line, change.end + 1))
        if on_import or not found:
            for file, line in _named_at(change):
                found |= self._at(file, range(line, line + 1))
        if not found:
            found = {test for tests in self.lines.get(change.file, {}).values() for test in tests}
        stem = Path(change.file).stem
        ordered = sorted(
            found, key=lambda t: (stem not in t.split("::")[0], self.seconds[t] > 1, self.seconds[t], t)
        )
        spent = list(itertools.accumulate(self.seconds[test] for test in ordered))
        return [test for test, until in zip(ordered, spent, strict=True) if until <= budget]

    def _naming(self, change: Change) -> set[str]:
        name = _assigned(change)
        if name is None:
            return set()
        pattern = re.compile(rf"\b{name}\b")
        files = {test.partition("::")[0] for test in self.seconds}
        naming = {file for file in files if pattern.search((ROOT / file).read_text())}
        return {test for test in self.seconds if test.partition("::")[0] in naming}

    def _at(self, file: str, lines: Iterable[int]) -> set[str]:
        return {test for line in lines for test in self.lines.get(file, {}).get(str(line), ())}


def _assigned(change: Change) -> str | None:
    """The name that the statement of a change gives a value to."""
    match = re.match(r"\s*(\w+)\s*[:=]", (ROOT / change.file).read_text().splitlines()[change.line - 1])
    return match[1] if match else None


def _functions(file: str, line: int, body: bool) -> list[ast.FunctionDef]:
    """Those around a line, or around it with their body alone."""
    return [
        node
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef)
        and (node.body[0] if body else node).lineno <= line <= (node.end_lineno or 0)
    ]


def _on_import(change: Change) -> bool:
    return not _functions(change.file, change.line, body=True)


def _named_at(change: Change) -> Iterator[tuple[str, int]]:
    """Where the function or name is used that a line executed on import belongs to."""
    if around := _functions(change.file, change.line, body=False):
        innermost = max(around, key=lambda node: node.lineno)
        yield from (
            (change.file, line) for line in range(innermost.body[0].lineno, (innermost.end_lineno or 0) + 1)
        )
        return
    if name := _assigned(change):
        pattern = re.compile(rf"\b{name}\b")
        for file in sources():
            for number, text in enumerate((ROOT / file).read_text().splitlines(), 1):
                if pattern.search(text):
                    yield file, number


class _Recorder:
    """A plugin of pytest that tells coverage which test is running, or which fixture that tests share."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self.users: dict[str, list[str]] = defaultdict(list)
        self._running = ""

    def _run(self, name: str) -> None:
        self._running = name
        self.measured.switch_context(name)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._run(nodeid)

    def pytest_runtest_setup(self, item: Any) -> None:
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for definition in definitions:
                self.users[_fixture(definition)].append(item.nodeid)

    @pluggy.HookimplMarker("pytest")(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What makes something for several tests is executed in the first of them, but by all that use it."""
        before = self._running
        if fixturedef.scope != "function":
            self._run(_fixture(fixturedef))
        try:
            return (yield)
        finally:
            self._run(before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def tests(self, context: str) -> set[str]:
        """Those that execute what was executed under a name, and do not fail."""
        return {test for test in self.users.get(context, [context]) if test and test not in self.failed}


def _fixture(definition: Any) -> str:
    return f"fixture {definition.baseid} {definition.argname}"


def measure(copy: Path, tests: str, out: Path) -> int:
    """Run tests and write what they reach; those that fail, or take a minute, are not used."""
    import pytest

    os.chdir(copy)
    measured = coverage.Coverage(data_file=None, source=[str(copy / name) for name in PACKAGES], config_file=False)
    measured.start()
    measured.switch_context("")
    recorder = _Recorder(measured)
    pytest.main([*OPTIONS[1:], "--timeout=60", tests], plugins=[recorder])
    measured.stop()
    data, lines = measured.get_data(), {}
    for file in data.measured_files():
        by_line = {
            str(line): sorted(set().union(*map(recorder.tests, found)))
            for line, found in data.contexts_by_lineno(file).items()
        }
        lines[str(Path(file).relative_to(copy))] = {line: found for line, found in by_line.items() if found}
    for test in recorder.failed:
        print(f"warning: {test} fails without any change", file=sys.__stderr__)
    seconds = {test: took for test, took in recorder.seconds.items() if test not in recorder.failed}
    out.write_text(json.dumps({"seconds": seconds, "lines": lines}))
    return 0
