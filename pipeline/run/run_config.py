"""The configuration of a whole run: a section for each stage of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from models.portable import WEIGHTS_FILE
from pipeline.run.stage_table import STAGES

_ROOT = Path(__file__).resolve().parents[2]


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
        weights: what the trainings begin with: none, for random weights; zoo, for models/zoo, trained on generated
            traffic; or a folder of exports (``python -m pipeline export``), reference and policy. The vocabulary
            is theirs.
    """

    seed: int = 0
    agents: list[str] = field(default_factory=lambda: ["log", "constant_velocity", "reference", "policy"])
    submission_agent: str = "policy"
    metadata: Path = _ROOT / "submission" / "metadata.example.yaml"
    weights: str = "none"

    def start_of(self, kind: str) -> Path | None:
        """The file that the training of a ``reference`` or ``policy`` begins with; None for random weights.

        Raises:
            UserError: there is none.
        """
        if self.weights == "none":
            return None
        folder = _ROOT / "models" / "zoo" if self.weights == "zoo" else Path(self.weights)
        path = folder / kind / WEIGHTS_FILE
        if not path.is_file():
            raise UserError(
                f"--weights {self.weights}: there is no {path}; give zoo, none, or a folder with the exports "
                "reference and policy"
            )
        return path

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, section: str) -> Any: ...
