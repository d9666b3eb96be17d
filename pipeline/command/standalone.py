"""Commands that are run alone: what each writes, and that no earlier result is lost or taken for another's."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.places import is_remote, place
from data.sources import find_shards
from pipeline.execution.code_version import code_version
from pipeline.execution.console import say
from pipeline.execution.devices import check_devices
from pipeline.execution.locking import locked
from pipeline.execution.manifest import Recipe, Work, look, set_aside
from pipeline.execution.works import identity, measured, perform, refuse_own_inputs, wait_for_first

__all__ = ["CHOICES", "WRITES", "Writes", "run_command"]

CHOICES = {
    "fresh": "start over; what is in the way is kept in the folder replaced/ beside it",
    "keep": "a finished result stays as it is whatever changed; unfinished work goes on where it can",
}


@dataclass(frozen=True)
class Writes:
    """What a command writes, and how it comes to terms with what is there already.

    Attributes:
        owns: patterns of names in its folder; where "" is one of them the command writes a file, and they are what
            the names of the file and its companions end with. Empty: it has a folder that remembers for itself what
            is made from what, and refuses to mix.
        inputs: options whose files decide the result.
        out: where it writes if --out is not given, below --run.
        once: a finished result is not made again. Other commands recognise what is there, or write it anew.
        goes_on: see ``Work``.
    """

    owns: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    out: str | None = None
    once: bool = False
    goes_on: bool = False


_FITTED = ("reference.ckpt", "training.ckpt", "metrics.csv", "tensorboard")

WRITES = {
    "traffic": Writes(("training", "validation", "testing", "counts", "traffic.json")),
    "tokenize": Writes(
        ("*.scenes.parquet", ".receipts", "rejected.csv", "SHA256SUMS", "vocabulary.pt"), ("data",), goes_on=True
    ),
    "pretrain": Writes(_FITTED, ("scenes", "validation", "vocabulary", "start"), once=True, goes_on=True),
    "finetune": Writes(_FITTED, ("scenes", "validation", "checkpoint"), once=True, goes_on=True),
    "selfplay": Writes(
        ("policy.ckpt", "best.ckpt", "training.pt", "metrics.csv", "tensorboard"),
        ("scenes", "validation", "reference"),
        once=True,
        goes_on=True,
    ),
    "export": Writes(("model.safetensors", "config.json"), ("checkpoint",)),
    "sample": Writes(
        ("rollouts.binproto-*", ".receipts", "SHA256SUMS", "sampling.json"), ("scenarios", "checkpoint")
    ),
    "evaluate": Writes(("metrics.json", "per_scenario.csv", "diagnosis.csv", "parts"), ("scenarios", "rollouts")),
    "package": Writes(("", ".sha256", ".part-*"), ("rollouts", "scenarios", "metadata"), goes_on=True),
    "sumo": Writes(("cosimulation.json", "settings.json", "worlds", "world.mp4", "world.png"), ("policy",)),
    "report": Writes(("",), ("run",), out="report/report.html", goes_on=True),
    "claims": Writes(out="claims"),
    # Their parts are kept by what decides them, so that other settings cost what is new alone.
    "planners": Writes(
        ("planners.json", "report.md", "*.csv", "figures", "cases"),
        ("run", "scenarios", "reference", "policy", "plain"),
        out="planners",
        goes_on=True,
    ),
    "robustness": Writes(
        ("metrics.json", "table.*", "degradation.*"),
        ("run", "scenarios", "reference", "policy"),
        out="robustness",
        goes_on=True,
    ),
    "transfer": Writes(("metrics.json", "table.*"), ("runs",), goes_on=True),
}


def _out(writes: Writes, own: Mapping[str, Any]) -> Path | None:
    """Where a command writes; None where that is not said, or is not on this machine."""
    if own.get("out") is not None:
        out = place(own["out"])
        return None if is_remote(out) else out
    return place(own["run"]) / writes.out if writes.out and own.get("run") is not None else None


def _work(name: str, writes: Writes, out: Path) -> Work:
    if "" not in writes.owns:
        owns = writes.owns or ("*",)
        return Work(out, name, out / "replaced" / name, owns, f".{name}.", writes.goes_on)
    owns = tuple(glob.escape(out.name) + ending for ending in writes.owns)
    return Work(out.parent, name, out.parent / "replaced" / out.name, owns, f".{out.name}.", writes.goes_on)


def _recipe(module: str, config: Any, own: Mapping[str, Any], inputs: Mapping[str, str]) -> Recipe:
    """What decides the result: the configuration, options that are no paths of what is read or written, inputs."""
    besides = {"out", "engine", "seed", "show", *inputs}
    options = {name: value for name, value in own.items() if name not in besides}
    plain = json.loads(json.dumps({**dataclasses.asdict(config), **options}, default=str))
    return Recipe(config=plain, seed=own.get("seed") or 0, code=code_version(module), inputs=dict(inputs))


def _identity(option: str, value: Any, own: Mapping[str, Any]) -> str | None:
    if option != "data":
        return identity(value)
    try:
        # Hundreds of gigabytes, of which every file of the store remembers what it was made from.
        return "\n".join(shard.fingerprint for shard in find_shards(value, own["split"]))
    except UserError:
        return None


def _first() -> bool:
    """Whether this is the first of the processes that torchrun or Slurm started together."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def run_command(
    name: str,
    module: str,
    function: Callable[..., dict[str, Any]],
    config: Any,
    own: dict[str, Any],
    *,
    fresh: bool,
    keep: bool,
) -> dict[str, Any]:
    """Call a command's function; only one process at a time where it writes, and nothing there is lost.

    Args:
        name: of the command. module: of its code. function, config, own: what to call, with which options.
        fresh, keep: see ``CHOICES``.

    Returns:
        Its figures, or those of the finished result that is there already.

    Raises:
        UserError: of the function; a device that is not there; another process at work; what cannot be kept.
    """
    if fresh and keep:
        raise UserError("--fresh --keep: one starts over, the other goes on; give one of them")
    engine = own.get("engine")
    if engine is None or engine.kind == "local":
        check_devices(config)
    writes = WRITES.get(name)
    out = None if writes is None else _out(writes, own)
    if writes is None or out is None:
        return function(config, **own)
    given = {option: own[option] for option in writes.inputs if own.get(option) is not None}
    inputs = {option: _identity(option, value, own) for option, value in given.items()}
    run = own.get("run")
    if None in inputs.values() or (isinstance(run, Path) and not run.is_dir()):
        # The function names what is missing; nothing is moved for that.
        return function(config, **own)
    work, title = _work(name, writes, out), f"{out}:"
    if "keep" in own:
        own["keep"] = keep
    refuse_own_inputs(work, given)
    recipe = _recipe(
        module, config, {**own, "keep": None}, {option: str(value) for option, value in inputs.items()}
    )
    if not _first():
        state = wait_for_first(work, recipe)
        return {} if state.reason is None else function(config, **own)
    with locked(work.folder, name, ".lock" if work.folder == out else f".{out.name}.lock"):
        if not writes.owns:
            if keep:
                raise UserError(f"--keep: {name} goes on with what was made with the same options in any case")
            aside = set_aside(work) if fresh else None
            if aside:
                say(f"{title} starting over (--fresh); what was there is kept in {aside}")
            return function(config, **own)
        figures: dict[str, Any] = {}

        def act() -> dict[str, Any]:
            figures.update(function(config, **own))
            return figures

        made = perform(
            work,
            recipe,
            lambda: measured(act),
            title=title,
            fresh=fresh,
            keep=keep,
            again=not writes.once,
        )
        if made is not None:
            return figures
        state = look(work, recipe)
        say(f"{title} nothing to do, the result is there already (--fresh makes it again)")
    return dict(_figures(work))


def _figures(work: Work) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(work.manifest.read_text())["figures"]
    return values
