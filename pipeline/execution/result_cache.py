"""Results that are computed once.

``run_kept`` keeps the rows of each task in a file named by a digest of all that decides them: other settings or
more scenes cost only what is new, and an interrupted run goes on. ``keep_settings`` is for folders whose files have
names that people read: it refuses to mix two settings in one folder. Files with receipts are in ``data.receipts``,
whole stages and commands in ``execution.manifest``.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from data.errors import UserError
from data.files import read_json, remove_leftovers, write_json
from pipeline.execution.console import bar
from pipeline.execution.engine import EngineConfig, run_on
from pipeline.execution.manifest import differences

if TYPE_CHECKING:
    from pipeline.execution.devices import Devices

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = frozenset({"data", "models", "submission", "pipeline"})


class KeptTask(Protocol):
    """A picklable task.

    Attributes:
        name: digest of everything that decides its result, and of nothing else (``digest_of``).
        size: how many units it has, for the progress bar.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


TaskT = TypeVar("TaskT", bound=KeptTask)


def digest_of(task: Any, **further: Any) -> str:
    """32 hexadecimal digits that stand for a dataclass of plain values.

    Args:
        task: a dataclass, its paths emptied where digests stand for what they hold. further: values that count
            too, such as the code's version.
    """
    fields = dataclasses.asdict(task)
    return hashlib.sha256(json.dumps(fields | further, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _do(function: Callable[[TaskT], list[dict[str, Any]]], job: tuple[Path, TaskT]) -> int:
    """Write the rows of a task to its file; returns the size of the task."""
    target, task = job
    write_json(target, function(task))
    return task.size


def _held(target: Path) -> list[dict[str, Any]] | None:
    """Rows of a task that was done; None where it was not, or where the file is damaged."""
    try:
        rows = read_json(target)
    except (OSError, ValueError):
        return None
    return rows if isinstance(rows, list) else None


def is_kept(tasks: Sequence[KeptTask], folder: Path) -> bool:
    """Whether the rows of all tasks are in the folder."""
    return all(_held(folder / f"{task.name}.json") is not None for task in tasks)


def run_kept(
    function: Callable[[TaskT], list[dict[str, Any]]],
    tasks: Sequence[TaskT],
    folder: Path,
    description: str,
    workers: int,
    engine: EngineConfig,
    devices: Devices | None = None,
    unit: str = " scene",
) -> list[list[dict[str, Any]]]:
    """Rows of every task, in order; rows of an earlier run are read.

    Args:
        function: importable by name; its rows go through JSON. tasks: what to do.
        folder: of the results, one file a task; files of other tasks stay there.
        description, unit: of the progress bar. workers: processes, see ``run_on``. engine: who does the work.
        devices: of the tasks, see ``run_on``.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{task.name}.json" for task in tasks]
    missing = {target: task for task, target in zip(tasks, targets, strict=True) if _held(target) is None}
    total = sum(task.size for task in tasks)
    done = total - sum(task.size for task in missing.values())
    if devices is not None and engine.kind == "local":
        devices.tell(description, processes=min(devices.processes(workers), max(1, len(tasks))))
    with bar(description, total, unit, initial=done) as progress:
        work = partial(_do, function)
        for _, count in run_on(engine, work, list(missing.items()), workers, devices=devices, folder=folder):
            progress.update(count)
    remove_leftovers(folder)
    return [read_json(target) for target in targets]


def keep_settings(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Write down what a folder of results is made from, or compare with what is written there.

    Args:
        path: the file, in the folder. settings: plain values. what: the folder holds, for messages.

    Raises:
        UserError: the folder was made with other settings.
    """
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}): run again with --fresh, which keeps what is there in replaced/"
        ) from error
    refuse_changes(path.parent, found, settings, what)


def refuse_changes(folder: Path, before: Any, now: Mapping[str, Any], what: str) -> None:
    """Raise ``UserError`` where settings differ from those that a folder was made with; says in what.

    Args:
        before, now: plain values. what: the folder holds, for the message.
    """
    if changes := differences(before, now):
        raise UserError(
            f"{folder}: holds {what} made with other settings ({', '.join(changes[:3])}): start over with --fresh, "
            "which keeps it in replaced/, or give another folder"
        )


def _module_file(name: str) -> Path | None:
    """The file of a module of this project, or None."""
    if name.split(".")[0] not in _PACKAGES:
        return None
    stem = _ROOT.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _imported(tree: ast.AST) -> set[str]:
    """Names of modules that a syntax tree imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            # ``from package import module`` names a module only through its alias.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


@cache
def _parsed(path: Path) -> tuple[str, frozenset[str]]:
    """Digest of a file's code without comments and docstrings, and the modules it imports."""
    tree = ast.parse(path.read_text(), str(path))
    imported = frozenset(_imported(tree))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imported


@cache
def code_version(module: str) -> str:
    """16 hexadecimal digits for the code of ``module`` and all modules of this project that it imports."""
    pending, digests = [module], dict[Path, str]()
    while pending:
        path = _module_file(pending.pop())
        if path is None or path in digests:
            continue
        digests[path], imported = _parsed(path)
        pending.extend(imported)
    text = "".join(f"{path.relative_to(_ROOT)}:{digest};" for path, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
