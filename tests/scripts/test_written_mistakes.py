"""The written mistakes of ``scripts/checks/mutate.py`` are changes of the code as it is now."""

from __future__ import annotations

import ast

import pytest
import yaml

from scripts.checks.mutants import ROOT, sources, written


def test_every_written_mistake_changes_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "scripts" / "checks" / "mistakes.yaml"
    made = written(path, sources())
    # What does not occur once, in a file that is changed, is named and left out.
    assert len(made) == len(yaml.safe_load(path.read_text())), capsys.readouterr().err
    for change, text in made:
        assert change.old != change.new, change
        # Any test notices what is no Python.
        ast.parse(text(), change.file)
