"""Names that stages of a run agree on."""

from __future__ import annotations

__all__ = ["ARCHIVE", "POLICY", "REFERENCE", "REPORT", "STAGES"]

# In the order in which they run; each has a folder of its name.
STAGES = (
    "traffic",
    "tokenize",
    "pretrain",
    "finetune",
    "selfplay",
    "sample",
    "evaluate",
    "package",
    "validate",
    "report",
)
ARCHIVE = "submission.tar.gz"
REFERENCE, POLICY = "reference.ckpt", "policy.ckpt"
REPORT = "report.html"
