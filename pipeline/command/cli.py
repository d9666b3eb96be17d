"""The command line: finds a command's function and configuration, parses its options, and turns errors that a
user can mend into one line on stderr."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import inspect
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.completeness import allow_partial
from data.errors import OUT_OF_MEMORY, UserError, expected, is_out_of_memory
from data.places import open_path
from pipeline.command.options import (
    command_parser,
    expand_flags,
    normalise,
    pop_flag,
    pop_option,
    split_config,
)
from pipeline.execution.console import be_quiet, logged
from pipeline.execution.processes import end_workers, interruptible
from pipeline.run.presets import PRESETS, load_preset
from pipeline.run.stage_table import STAGES, TRAININGS, Command, load

# By name, as all commands are: telling inputs apart takes all readers of the project.
_ALONE = "pipeline.run.standalone:run_command"
# Options that may be given for all parts of a command at once.
_WHERE = ("device", "devices")
CHOICES = {
    "fresh": "start over; what is in the way is kept in the folder replaced/ beside it",
    "keep": "a finished result stays as it is whatever changed; unfinished work goes on where it can",
}
_WHOLE = Command(
    name="stages",
    summary="run all stages, from data to a validated archive",
    example="--preset demo --run demo",
    module="pipeline.run.runner",
    function="run_stages",
    config="pipeline.run.run_config:RunConfig",
)
# Commands that are no stages; what stages are is in their table.
_OTHERS = (
    Command(
        name="export",
        summary="write a reference or policy as safetensors and JSON, and as ONNX",
        example="--checkpoint runs/demo/finetune/reference.ckpt --out runs/export",
        module="pipeline.fitting.export",
        function="run_export",
        config="ExportConfig",
        outputs=("model.safetensors", "config.json", "*.onnx", "scene.npz"),
        inputs=("checkpoint", "scenarios"),
    ),
    Command(
        name="sumo",
        summary="drive vehicles in SUMO with a policy or a reference, and compare with SUMO's model",
        example="--policy runs/demo/selfplay/policy.ckpt --out runs/demo/sumo",
        module="pipeline.studies.cosimulation.command",
        function="run_cosimulation",
        config="CosimulationConfig",
        outputs=("cosimulation.json", "settings.json", "worlds", "world.mp4", "world.png"),
        inputs=("policy", "reference"),
    ),
    Command(
        name="view",
        summary="look at scenarios and rollouts in a browser",
        example="--scenarios womd/validation --rollouts submission.tar.gz",
        module="pipeline.viewing.view",
        function="run_view",
        config="ViewConfig",
    ),
    Command(
        name="claims",
        summary="test the paper's claims by experiments: tables, figures, verdicts",
        example="--preset demo --run runs/demo --only likelihood,stability",
        module="pipeline.studies.claims.command",
        function="run_claims",
        config="ClaimsConfig",
        parts=("tokenize", "pretrain", "finetune", "selfplay"),
        outputs=(),
        out="claims",
    ),
    # The parts of planners and robustness are kept by what decides them: other settings cost what is new alone.
    Command(
        name="planners",
        summary="score planners that drive the AV while others follow log, reference or policy",
        example="--run runs/demo --planner pipeline.studies.planners.example:make",
        module="pipeline.studies.planners.command",
        function="run_planners",
        config="PlannersConfig",
        parts=("selfplay",),
        outputs=("planners.json", "report.md", "*.csv", "figures", "cases"),
        inputs=("run", "scenarios", "reference", "policy", "plain"),
        out="planners",
        goes_on=True,
    ),
    Command(
        name="robustness",
        summary="measure realism when inputs have errors",
        example="--run runs/demo --out runs/demo/robustness",
        module="pipeline.studies.robustness.command",
        function="run_robustness",
        config="RobustnessConfig",
        outputs=("metrics.json", "table.*", "degradation.*"),
        inputs=("run", "scenarios", "reference", "policy"),
        out="robustness",
        goes_on=True,
    ),
    Command(
        name="transfer",
        summary="test the agents of each run on the scenes of the others",
        example="""--runs '["runs/demo", "runs/womd"]' --out runs/transfer""",
        module="pipeline.studies.robustness.transfer",
        function="run_transfer",
        config="TransferConfig",
        outputs=("metrics.json", "table.*"),
        inputs=("runs",),
        goes_on=True,
    ),
    Command(
        name="plan",
        summary="estimate time, disk and memory of a complete submission",
        example="--scenarios 44920 --gpus 8 --run runs/demo",
        module="pipeline.run.plan",
        function="run_plan",
        config="PlanConfig",
    ),
)
COMMANDS = {command.name: command for command in (_WHOLE, *STAGES, *_OTHERS)}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [--preset NAME] [options]",
            "",
            *lines,
            "",
            f"presets: {', '.join(PRESETS)}.",
            f"Without one {', '.join(TRAININGS)} take scratch, and the others demo.",
            "Options of a command: python -m pipeline COMMAND --help",
            "all commands: --quiet prints only errors and warnings; --log FILE also writes messages to FILE;",
            "--partial continues when shards of a split are missing.",
            "Commands that compute on GPUs: --device and --devices hold for all of their parts.",
        ]
    )


def _call(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    arguments = normalise(arguments)
    if pop_flag(arguments, "quiet"):
        be_quiet()
    if pop_flag(arguments, "partial"):
        allow_partial()
    log = pop_option(arguments, "log", "")
    with logged(open_path(log)) if log else contextlib.nullcontext():
        _run(name, command, arguments)


def whole_run(preset: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """What a preset says of a whole run: everything but the sections of commands that a run does not contain."""
    beside = set(COMMANDS) - {field.name for field in dataclasses.fields(config_class)}
    return {name: values for name, values in preset.items() if name not in beside}


def preset_section(command: Command, preset: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """What a preset says of a command; its own section goes before those that it shares."""
    if command is _WHOLE:
        return whole_run(preset, config_class)
    return {**{part: preset.get(part, {}) for part in command.parts}, **preset.get(command.name, {})}


def _paths(option: str, config_class: type[Any]) -> Iterator[list[str]]:
    """Where options of a name are in a configuration, at any depth."""

    def found(config: Any) -> Iterator[list[str]]:
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from ([field.name, *path] for path in found(value))
            elif field.name == option:
                yield [option]

    return found(config_class())


def _everywhere(
    option: str, arguments: list[str], section: Mapping[str, Any], config_class: type[Any]
) -> dict[str, Any]:
    """A section in which all options of a name have the value that the arguments give to ``--NAME``.

    Options of single parts, as ``--fit.device``, go before. The option is taken from the arguments unless the
    command itself has it.
    """
    result = copy.deepcopy(dict(section))
    paths = list(_paths(option, config_class))
    of_parts = [path for path in paths if path != [option]]
    value = pop_option(arguments if paths == of_parts and paths else list(arguments), option, "")
    if option == "devices" and value not in ("", "auto") and not value.isdecimal():
        raise UserError(f"--devices {value}: expected a number or auto")
    if value:
        for *parts, last in of_parts:
            part = result
            for name in parts:
                part = part.setdefault(name, {})
            part[last] = int(value) if value.isdecimal() else value
    return result


def _run(name: str, command: Command, arguments: list[str]) -> None:
    # The demo's trainings are short and careful, since it begins with weights of models/zoo. One that is run alone
    # begins with random ones.
    preset_name = pop_option(arguments, "preset", "scratch" if name in TRAININGS else "demo")
    preset = load_preset(preset_name)
    function, config_class = command.load()
    # Imported late: it takes as long as the commands themselves.
    from pipeline.execution.devices import is_first_process

    section = preset_section(command, preset, config_class)
    for option in _WHERE:
        section = _everywhere(option, arguments, section, config_class)
    epilog = f"example: python -m pipeline {name} {command.example}"
    parser = command_parser(name, function, config_class, section, epilog)
    parameters = inspect.signature(function).parameters
    for choice, text in CHOICES.items():
        if command.outputs is not None and choice not in parameters:
            parser.add_argument(f"--{choice}", type=bool, default=False, help=text)
    parsed = parser.instantiate(parser.parse_args(expand_flags(parser, arguments, command.positional)))
    own, fields = split_config(parsed, [*parameters, *CHOICES])
    config = config_class(**{field.name: fields[field.name] for field in dataclasses.fields(config_class)})
    if command is _WHOLE:
        figures = function(config, **own)
    else:
        asked = {choice: bool(own.get(choice)) for choice in CHOICES}
        own = {option: value for option, value in own.items() if option in parameters}
        figures = load(_ALONE)(command, function, config, own, **asked)
    if command is not _WHOLE and is_first_process():
        print(json.dumps(figures, indent=2, default=str))


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the same command again to go on"
    if error.errno == errno.EFBIG:
        return (
            f"{where}larger than files may be (ulimit -f); raise the limit and run the same command again to go on"
        )
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
        print(f"error: {name}: no such command, {expected(name, COMMANDS)}", file=sys.stderr)
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
