"""Which outputs of a run count."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UserError
from pipeline.run.run_folder import POLICY, PRETRAINED, REFERENCE, RunFolder
from tests.pipeline.conftest import finish_stages


def test_outputs_count_once_their_stage_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.opened(tmp_path / "none")
    with pytest.raises(UserError, match="no finished stage of a run here"):
        RunFolder.opened(tmp_path)
    run = RunFolder(tmp_path)
    for name in (PRETRAINED, REFERENCE, POLICY):
        run.path(name).parent.mkdir()
        run.path(name).touch()
    assert run.checkpoint("reference") is None
    assert run.checkpoint("policy") is None
    finish_stages(tmp_path, "pretrain")
    assert RunFolder.opened(tmp_path).reference == run.path(PRETRAINED)
    assert run.reference == run.path(PRETRAINED)
    assert capsys.readouterr().err.count("finetune is not finished; the reference of pretrain is used") == 1
    with pytest.raises(UserError, match=r"policy.ckpt: no output of a finished stage; run `make selfplay`"):
        _ = run.policy
    finish_stages(tmp_path, "finetune", "selfplay")
    assert (run.reference, run.policy) == (run.path(REFERENCE), run.path(POLICY))
    assert run.checkpoint("log") is None
    run.path(POLICY).unlink()
    assert run.checkpoint("policy") is None
    assert capsys.readouterr().err == ""
