"""Scores of drives, as nuPlan and NAVSIM score planners: ``score_drives``; formulas in each module's docstring."""

from pipeline.studies.planners.scores.collision import Collision, Collisions
from pipeline.studies.planners.scores.totals import (
    MULTIPLIERS,
    SCORE_NAMES,
    TOTALS,
    WEIGHTS,
    DriveScores,
    score_drives,
)

__all__ = [
    "MULTIPLIERS",
    "SCORE_NAMES",
    "TOTALS",
    "WEIGHTS",
    "Collision",
    "Collisions",
    "DriveScores",
    "score_drives",
]
