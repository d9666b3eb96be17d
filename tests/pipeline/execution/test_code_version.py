"""A stage's code version follows its behaviour, not its comments, and only the code it uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.execution import result_cache as module


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "pipeline").mkdir()
    for folder in ("data", "pipeline"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "data" / "used.py").write_text("x = 1\n")
    (tmp_path / "data" / "unused.py").write_text("y = 1\n")
    (tmp_path / "pipeline" / "stage.py").write_text(
        "def run():\n    '''Doc.'''\n    from data import used\n    return used.x\n"
    )
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    return tmp_path


def version() -> str:
    module._parsed.cache_clear()
    module.code_version.cache_clear()
    return module.code_version("pipeline.stage")


def test_follows_imports_inside_functions(tree: Path) -> None:
    before = version()
    (tree / "data" / "unused.py").write_text("y = 2\n")
    assert version() == before
    (tree / "data" / "used.py").write_text("x = 2\n")
    assert version() != before


def test_ignores_comments_and_docstrings(tree: Path) -> None:
    before = version()
    (tree / "data" / "used.py").write_text('"""New."""\n# why\nx = 1\n')
    (tree / "pipeline" / "stage.py").write_text(
        "def run():\n    '''Other.'''\n    from data import used\n    return used.x  # yes\n"
    )
    assert version() == before
    (tree / "pipeline" / "stage.py").write_text("def run():\n    from data import used\n    return -used.x\n")
    assert version() != before
