"""Reactivity of sim agents: scripted AVs, the scenes in which they concern somebody, and what the others do."""

from pipeline.studies.planners.reactivity.followers import CutIn, find_cut_in, find_follower
from pipeline.studies.planners.reactivity.manoeuvres import (
    MANOEUVRE_STEP,
    MANOEUVRES,
    cut_in,
    gentle_stop,
    hard_brake,
)
from pipeline.studies.planners.reactivity.measures import Reaction, measure, summarise

__all__ = [
    "MANOEUVRES",
    "MANOEUVRE_STEP",
    "CutIn",
    "Reaction",
    "cut_in",
    "find_cut_in",
    "find_follower",
    "gentle_stop",
    "hard_brake",
    "measure",
    "summarise",
]
