"""What is kept of a training: a row of figures for each update, to a table, to TensorBoard and to the bar."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from data.files import write_text
from data.scene import Scene
from pipeline.agents.catalogue import SimAgent
from pipeline.drawing.board import add_rollout
from pipeline.execution.progress import bar

__all__ = ["TABLE_FILE", "Journal"]

TABLE_FILE = "metrics.csv"
_CURVES = "tensorboard"
# Where TensorBoard groups what the table names; the longest that fits.
_GROUPS = {
    "evaluation_": "evaluation",
    "reward_": "reward",
    "seconds_": "seconds",
    "steps_per_second": "speed",
    "kl": "anchor",
    "log_likelihood": "anchor",
    "reference_coverage": "anchor",
    "entropy": "anchor",
    "collision_rate": "events",
    "off_road_rate": "events",
    "red_light_rate": "events",
    "goal_rate": "events",
}
# Speeds differ from run to run, and a table that is to be the same after an interruption cannot have them.
_VOLATILE = ("seconds_", "steps_per_second")

Row = dict[str, float]


class Journal:
    """Of one training.

    Args:
        out: folder of the outputs. total: agent-steps of the whole training. rows: of updates done before an
            interruption. curves: write for TensorBoard. shown: draw a progress bar.
    """

    def __init__(self, out: Path, total: int, rows: list[Row], curves: bool, shown: bool) -> None:
        self._out, self._total, self.rows = out, total, rows
        done = int(rows[-1]["agent_steps"]) if rows else 0
        self._progress: tqdm | None = bar("selfplay", total, " steps", initial=min(done, total)) if shown else None
        # Steps after the last checkpoint are done again: their points go.
        self._writer = SummaryWriter(str(out / _CURVES), purge_step=done + 1) if curves and shown else None

    def add(self, row: Row) -> None:
        """An update's figures; ``agent_steps`` says where it is."""
        self.rows.append({name: value for name, value in row.items() if not name.startswith(_VOLATILE)})
        step = int(row["agent_steps"])
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(f"{_group(name)}/{name}", value, step)
        if self._progress is not None:
            text = f"KL {row['kl']:.3f}, collision {row['collision_rate']:.3f}, off-road {row['off_road_rate']:.3f}"
            if "evaluation_realism" in row:
                text += f", realism {row['evaluation_realism']:.3f}"
            self._progress.set_postfix_str(text, refresh=False)
            self._progress.update(min(step, self._total) - self._progress.n)

    def add_rollout(self, agent: SimAgent, scene: Scene, step: int, seed: int) -> None:
        """A rollout of the policy to look at."""
        if self._writer is not None:
            add_rollout(self._writer, agent, scene, step, seed)

    def write_table(self) -> None:
        """All rows as CSV; what an update lacks is empty."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        write_text(self._out / TABLE_FILE, table.getvalue())

    def close(self) -> None:
        """Whatever happened."""
        if self._progress is not None:
            self._progress.close()
        if self._writer is not None:
            self._writer.close()


def _group(name: str) -> str:
    return next((group for prefix, group in _GROUPS.items() if name.startswith(prefix)), "ppo")
