"""A version of the code of a stage: a change of behaviour makes its outputs stale, a comment does not."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

__all__ = ["code_version"]

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = frozenset({"data", "models", "submission", "pipeline"})


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
