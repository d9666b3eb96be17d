"""The command line: finds a command's function and configuration, parses its options, and turns errors that a
user can mend into one line on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import importlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.completeness import allow_partial
from data.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from data.places import place
from pipeline.command.options import (
    PRESETS,
    command_parser,
    expand_flags,
    load_preset,
    normalise,
    pop_flag,
    pop_option,
    split_config,
)
from pipeline.execution.console import be_quiet, logged
from pipeline.execution.interruption import end_workers, interruptible

__all__ = ["COMMANDS", "load_command", "main", "preset_section", "whole_run"]


@dataclass(frozen=True)
class Command:
    """Where a command's code is; imported only when it is called."""

    module: str
    function: str
    config: str
    section: str | None
    example: str
    summary: str
    positional: str | None = None
    # Sections of presets that are parts of this command's configuration.
    parts: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "stages": Command(
        "pipeline.run.runner",
        "run_stages",
        "pipeline.run.run_config:RunConfig",
        None,
        "--preset demo --run demo",
        "all stages, from data to a validated archive",
    ),
    "traffic": Command(
        "pipeline.stages.traffic",
        "run_traffic",
        "TrafficConfig",
        "traffic",
        "--out runs/traffic --seed 0",
        "generate traffic scenarios with SUMO",
    ),
    "tokenize": Command(
        "pipeline.stages.tokenize",
        "run_tokenize",
        "TokenizeConfig",
        "tokenize",
        "--data womd --split training --out runs/store/training",
        "ingest TFRecords into a store, learn the vocabulary",
    ),
    "pretrain": Command(
        "pipeline.stages.pretrain",
        "run_pretrain",
        "PretrainConfig",
        "pretrain",
        "--scenes runs/store/training --vocabulary runs/store/training/vocabulary.pt --out runs/pretrain",
        "train the reference with teacher forcing",
    ),
    "finetune": Command(
        "pipeline.stages.finetune",
        "run_finetune",
        "FinetuneConfig",
        "finetune",
        "--scenes runs/store/training --checkpoint runs/pretrain/reference.ckpt --out runs/finetune",
        "fine-tune the reference in closed loop",
    ),
    "export": Command(
        "pipeline.fitting.export",
        "run_export",
        "ExportConfig",
        "export",
        "--checkpoint runs/demo/finetune/reference.ckpt --out runs/export",
        "write the reference as safetensors and JSON",
    ),
    "selfplay": Command(
        "pipeline.stages.selfplay",
        "run_selfplay",
        "SelfPlayConfig",
        "selfplay",
        "--scenes runs/store/training --reference runs/finetune/reference.ckpt --out runs/selfplay",
        "train the policy by anchored self-play",
    ),
    "sample": Command(
        "pipeline.stages.sample",
        "run_sample",
        "SampleConfig",
        "sample",
        "--agent policy --checkpoint runs/demo/selfplay/policy.ckpt --scenarios womd/testing --out runs/out",
        "simulate joint futures of scenarios",
    ),
    "evaluate": Command(
        "pipeline.stages.evaluate",
        "run_evaluate",
        "EvaluateConfig",
        "evaluate",
        "--scenarios womd/validation --rollouts runs/out --metric 2025 --out runs/score",
        "score rollouts with the realism meta-metric",
    ),
    "package": Command(
        "pipeline.stages.package",
        "run_package",
        "PackageConfig",
        "package",
        "--rollouts runs/out --scenarios womd/testing --metadata metadata.yaml --out submission.tar.gz",
        "pack rollouts into a submission archive",
    ),
    "validate": Command(
        "pipeline.stages.validate",
        "run_validate",
        "ValidateConfig",
        "validate",
        "submission.tar.gz --scenarios womd/testing",
        "check a submission archive as the server would",
        positional="archive",
    ),
    "sumo": Command(
        "pipeline.studies.cosimulation.command",
        "run_cosimulation",
        "CosimulationConfig",
        "sumo",
        "--policy runs/demo/selfplay/policy.ckpt --out runs/demo/sumo",
        "let the policy drive inside SUMO, beside SUMO's own model",
    ),
    "report": Command(
        "pipeline.stages.report",
        "run_report",
        "ReportConfig",
        "report",
        "--run runs/demo",
        "a run as one HTML file: tables, charts, animated scenes",
    ),
    "view": Command(
        "pipeline.viewing.view",
        "run_view",
        "ViewConfig",
        "view",
        "--scenarios womd/validation --rollouts submission.tar.gz",
        "look at scenarios and rollouts in a browser",
    ),
    "claims": Command(
        "pipeline.studies.claims.command",
        "run_claims",
        "ClaimsConfig",
        "claims",
        "--preset demo --run runs/demo --only likelihood,stability",
        "the paper's claims as experiments: tables, figures, verdicts",
        parts=("tokenize", "pretrain", "finetune", "selfplay"),
    ),
    "planners": Command(
        "pipeline.studies.planners.command",
        "run_planners",
        "PlannersConfig",
        "planners",
        "--run runs/demo --planner pipeline.studies.planners.example:make",
        "planners in the AV among logs, reference, policy: PDM scores",
        parts=("selfplay",),
    ),
    "robustness": Command(
        "pipeline.studies.robustness.command",
        "run_robustness",
        "RobustnessConfig",
        "robustness",
        "--run runs/demo --out runs/demo/robustness",
        "realism of agents whose inputs are wrong",
    ),
    "transfer": Command(
        "pipeline.studies.robustness.transfer",
        "run_transfer",
        "TransferConfig",
        "transfer",
        """--runs '["runs/demo", "runs/womd"]' --out runs/transfer""",
        "agents trained in one run, tested on the scenes of others",
    ),
    "plan": Command(
        "pipeline.run.plan",
        "run_plan",
        "PlanConfig",
        "plan",
        "--scenarios 44920 --gpus 8 --run runs/demo",
        "time, disk and memory of a whole entry",
    ),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [--preset NAME] [options]",
            "",
            *lines,
            "",
            f"presets: {', '.join(PRESETS)}. Options of a command: python -m pipeline COMMAND --help",
            "all commands: --quiet says nothing but errors and warnings; --log FILE keeps what is said;",
            "--partial goes on where shards of a split are missing.",
        ]
    )


def load_command(command: Command) -> tuple[Any, type[Any]]:
    """A command's function and the class of its configuration."""
    module = importlib.import_module(command.module)
    place, _, name = command.config.rpartition(":")
    owner = importlib.import_module(place) if place else module
    return getattr(module, command.function), getattr(owner, name)


def _call(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    arguments = normalise(arguments)
    if command.positional and arguments and (not arguments[0].startswith("-") or os.path.exists(arguments[0])):
        arguments[0] = f"--{command.positional}={arguments[0]}"
    if pop_flag(arguments, "quiet"):
        be_quiet()
    if pop_flag(arguments, "partial"):
        allow_partial()
    log = pop_option(arguments, "log", "")
    with logged(place(log)) if log else contextlib.nullcontext():
        _run(name, command, arguments)


def whole_run(preset: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """What a preset says of a whole run: everything but the sections of commands that a run does not contain."""
    own = {field.name for field in dataclasses.fields(config_class)}
    beside = {command.section for command in COMMANDS.values()} - own
    return {name: values for name, values in preset.items() if name not in beside}


def preset_section(command: Command, preset: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """What a preset says of a command."""
    if command.section is None:
        return whole_run(preset, config_class)
    return {**preset.get(command.section, {}), **{part: preset.get(part, {}) for part in command.parts}}


def _run(name: str, command: Command, arguments: list[str]) -> None:
    preset_name = pop_option(arguments, "preset", "demo")
    preset = load_preset(preset_name)
    function, config_class = load_command(command)
    # Imported late: it takes as long as the commands themselves.
    from pipeline.command.standalone import CHOICES, WRITES, run_command

    section = preset_section(command, preset, config_class)
    epilog = f"example: python -m pipeline {name} {command.example}"
    parser = command_parser(name, function, config_class, section, epilog)
    parameters = inspect.signature(function).parameters
    for choice, text in CHOICES.items():
        if name in WRITES and choice not in parameters:
            parser.add_argument(f"--{choice}", type=bool, default=False, help=text)
    parsed = parser.instantiate(parser.parse_args(expand_flags(parser, arguments)))
    own, fields = split_config(parsed, [*parameters, *CHOICES])
    config = config_class(**{field.name: fields[field.name] for field in dataclasses.fields(config_class)})
    if command.section is None:
        figures = function(config, **own)
    else:
        asked = {choice: bool(own.get(choice)) for choice in CHOICES}
        own = {option: value for option, value in own.items() if option in parameters}
        figures = run_command(name, command.module, function, config, own, **asked)
    # Of processes that torchrun or Slurm started together, the first one speaks.
    first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    if command.section is not None and first:
        print(json.dumps(figures, indent=2, default=str))


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the same command again to go on"
    return f"{where}{error.strerror or error}"


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit status: 0 all of it worked, 1 an error named on stderr, 3 results were written of which something
        named on stderr is missing, 128 and the signal's number interrupted (130 by Ctrl-C).
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: {name}: no such command, expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    with interruptible():
        return _guarded(name, list(arguments[1:]))


def _guarded(name: str, arguments: list[str]) -> int:
    """Run a command and turn what it raises into a line and an exit status."""
    try:
        _call(name, arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away (``| head``); nothing of ours is lost.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {_describe(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        end_workers()
        print("\ninterrupted: run the same command again to go on", file=sys.stderr)
        return 128 + getattr(interruption, "number", signal.SIGINT)
    return 0
