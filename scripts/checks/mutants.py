"""Changes of the code for ``scripts/checks/mutate.py``: those of mutmut, of tensor code, and a written list."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
import yaml
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "pipeline/selfplay",
    "pipeline/simulator",
    "pipeline/agents",
    "pipeline/evaluation",
    "models",
    "data",
    "submission",
    "pipeline/studies/planners",
)

# Reductions and functions that a slip of the hand mixes up.
_SWAPPED = {
    "amax": "amin", "amin": "amax", "max": "min", "min": "max", "any": "all", "all": "any", "sum": "mean",
    "mean": "sum", "argmin": "argmax", "argmax": "argmin", "cos": "sin", "sin": "cos", "maximum": "minimum",
    "minimum": "maximum", "floor": "ceil", "ceil": "floor", "zeros": "ones", "ones": "zeros", "append": "insert",
    "logical_and": "logical_or", "atan2": "hypot", "cumsum": "cumprod", "exp": "expm1", "log": "log1p",
}  # fmt: skip
# Steps of a chain, and functions around a value, that may be forgotten.
_DROPPED = {
    "clamp", "clamp_min", "clamp_max", "detach", "cumsum", "flip", "abs", "sqrt", "square", "exp", "log", "floor",
    "round", "cos", "sin", "sorted", "reversed", "set", "unique", "transpose", "masked_fill", "nan_to_num",
    "wrap_angle", "softmax", "log_softmax", "strip", "lower", "resolve", "relu", "tanh",
}  # fmt: skip


def _swap(node: cst.Call) -> Iterator[cst.Call]:
    if isinstance(node.func, cst.Attribute) and (other := _SWAPPED.get(node.func.attr.value)):
        yield node.with_changes(func=node.func.with_changes(attr=cst.Name(other)))
    if isinstance(node.func, cst.Name) and node.func.value in ("max", "min", "any", "all"):
        yield node.with_changes(func=cst.Name(_SWAPPED[node.func.value]))


def _drop(node: cst.Call) -> Iterator[cst.BaseExpression]:
    name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
    if not isinstance(name, cst.Name) or name.value not in _DROPPED:
        return
    owner = node.func.value if isinstance(node.func, cst.Attribute) else None
    if owner is None or (isinstance(owner, cst.Name) and owner.value in ("torch", "np", "math", "F", "functional")):
        if node.args:
            yield node.args[0].value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    else:
        yield owner


def _minus(node: cst.UnaryOperation) -> Iterator[cst.BaseExpression]:
    if isinstance(node.operator, cst.Minus) and not isinstance(node.expression, cst.BaseNumber):
        yield node.expression


def _left_out(node: cst.Call) -> Iterator[cst.Call]:
    """The call without one of its keywords, or without its last argument."""
    for new in mutators.operator_arg_removal(node):
        if len(new.args) < len(node.args):
            gone = next((old for old, kept in zip(node.args, new.args) if old is not kept), node.args[-1])
            if gone.keyword or gone is node.args[-1]:
                yield new


# Messages and names are not what is studied: of mutmut's changes of a string one is made, not three.
def _string(node: cst.BaseString) -> Iterator[cst.BaseString]:
    yield from list(mutators.operator_string(node))[:1]


_WITH_OPERATOR = (
    cst.BinaryOperation, cst.UnaryOperation, cst.BooleanOperation, cst.ComparisonTarget, cst.AugAssign,
)  # fmt: skip
# Of mutmut's changes, None in the place of a value is left out: it ends in a TypeError wherever the line is
# executed, and a study of thousands of these says little.
_OPERATORS: list[tuple[type, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    (cst.BaseNumber, mutators.operator_number),
    (cst.BaseString, _string),
    (cst.Name, mutators.operator_name),
    (cst.AugAssign, mutators.operator_augmented_assignment),
    (cst.UnaryOperation, mutators.operator_remove_unary_ops),
    (cst.UnaryOperation, _minus),
    (cst.Call, _left_out),
    (cst.Call, _swap),
    (cst.Call, _drop),
    (cst.Call, mutators.operator_symmetric_string_methods_swap),
    (cst.BaseCompOp, mutators.operator_keywords),
    (cst.Break, mutators.operator_keywords),
    (cst.Continue, mutators.operator_keywords),
    *((kind, mutators.operator_swap_op) for kind in _WITH_OPERATOR),
    (cst.IfExp, mutators.operator_if_exp),
]


@dataclass(frozen=True)
class Change:
    """One change of one file.

    Attributes:
        file: from the root. line, end: first and last line of the statement, from 1.
        old, new: the text of what changes.
        count: how many of the same text come before in the file.
    """

    file: str
    line: int
    end: int
    old: str
    new: str
    count: int

    @property
    def name(self) -> str:
        text = repr((self.file, self.old, self.new, self.count))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def package(self) -> str:
        return next((package for package in PACKAGES if self.file.startswith(package + "/")), "other")


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int, int]] = []
        self._statements: list[CodeRange] = []
        self._raising = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        # Annotations are never evaluated; asserts tell types to mypy; what is imported is not arithmetic.
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Assert):
            return False
        if isinstance(node, cst.Assign) and "__all__" in cst.Module([]).code_for_node(node.targets[0]):
            return False
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
            return False
        if isinstance(node, cst.SimpleStatementLine):
            self._statements.append(self.get_metadata(PositionProvider, node))
        self._raising += isinstance(node, cst.Raise)
        place = self.get_metadata(PositionProvider, node, None)
        if place and not self._raising:
            around = self._statements[-1] if self._statements else place
            for kind, change in _OPERATORS:
                if isinstance(node, kind):
                    self.found += [(node, new, around.start.line, around.end.line) for new in change(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._raising -= isinstance(original_node, cst.Raise)
        if isinstance(original_node, cst.SimpleStatementLine):
            self._statements.pop()


# A change, and what makes the text of the changed file.
Made = tuple[Change, Callable[[], str]]


def changes_of(file: str) -> list[Made]:
    """Every change of a file, and what makes the text of the changed file."""
    wrapper = MetadataWrapper(cst.parse_module((ROOT / file).read_text()))
    visitor = _Visitor()
    wrapper.visit(visitor)
    module, seen = wrapper.module, Counter[tuple[str, str]]()
    found: list[Made] = []
    for old, new, line, end in visitor.found:
        texts = module.code_for_node(old), module.code_for_node(new)
        made = functools.partial(_replaced, module, old, new)
        found.append((Change(file, line, end, *texts, seen[texts]), made))
        seen[texts] += 1
    return found


def _replaced(module: cst.Module, old: cst.CSTNode, new: cst.CSTNode) -> str:
    return cst.ensure_type(module.deep_replace(old, new), cst.Module).code


def sources() -> list[str]:
    """All files that are changed, from the root."""
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def written(path: Path, files: Sequence[str]) -> list[Made]:
    """Mistakes written down by hand: file, old, new."""
    found: list[Made] = []
    known = sources()
    for entry in yaml.safe_load(path.read_text()):
        file, old, new = entry["file"], entry["old"], entry["new"]
        if file not in known:
            print(f"warning: {path.name}: {file}: no such file in {', '.join(PACKAGES)}", file=sys.stderr)
        if file not in files:
            continue
        text = (ROOT / file).read_text()
        if text.count(old) != 1:
            print(
                f"warning: {path.name}: {file}: {old!r} occurs {text.count(old)} times, expected once",
                file=sys.stderr,
            )
            continue
        line = text[: text.index(old)].count("\n") + 1
        change = Change(file, line, line + old.count("\n"), old, new, 0)
        found.append((change, functools.partial(text.replace, old, new)))
    return found
