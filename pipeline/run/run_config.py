"""The configuration of a whole run: a section for each stage of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.stage_table import STAGES


def _with_sections(base: type[Any]) -> type[Any]:
    """The class as a frozen dataclass with a field for each stage, described in its docstring."""
    text = (base.__doc__ or "").rstrip()
    for stage in STAGES:
        _, config = stage.load()
        base.__annotations__[stage.name] = config
        setattr(base, stage.name, field(default_factory=config))
        text += f"\n        {stage.name}: {stage.summary}."
    base.__doc__ = text
    return dataclass(frozen=True)(base)


@_with_sections
class RunConfig:
    """All stages.

    Args:
        seed: of everything random in the run.
        agents: kinds of agent that are sampled and evaluated on the validation split, in the order of the table.
        submission_agent: the agent whose rollouts of the testing split are packaged.
        metadata: YAML file with what the challenge wants to know of an entry; see submission/metadata.example.yaml.
    """

    seed: int = 0
    agents: list[str] = field(default_factory=lambda: ["log", "constant_velocity", "reference", "policy"])
    submission_agent: str = "policy"
    metadata: Path = Path(__file__).resolve().parents[2] / "submission" / "metadata.example.yaml"

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, section: str) -> Any: ...
