"""Options of a command from its function's signature and its configuration dataclass, with presets below them.

Order of precedence: dataclass default, preset, ``--config FILE``, command line.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from data.errors import UserError
from pipeline.run.presets import leaves

_WORD = re.compile(r"--([\w.\-]+)|'([\w.]+)'")
_YES_OR_NO = ("true", "false", "yes", "no", "on", "off")
_UNKNOWN = ("unrecognized", "not accept")


class CommandParser(ArgumentParser):
    """A parser whose errors are one line and name the option that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        known = [action.dest for action in self._actions if action.dest not in ("help", "config")]
        hint = next(filter(None, (_suggest(word, known) for word in _candidates(line))), "")
        sys.stderr.write(f"error: {line}{hint}\n")
        sys.exit(2)

    def parse_args(self, *arguments: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As always; a file that is given with --config may hold anything."""
        try:
            parsed: Namespace = super().parse_args(*arguments, **options)
        except (UnicodeDecodeError, RecursionError) as error:
            self.error(f"--config: not a YAML file that can be read ({type(error).__name__})")
        parts = [action.dest.split(".") for action in self._actions if "." in action.dest]
        for section in sorted({".".join(part[:end]) for part in parts for end in range(1, len(part))}):
            value = parsed.get(section)
            if not isinstance(value, Namespace):
                self.error(f"--{section} is {value!r}, expected a mapping of its options")
        try:
            # A file may say null where a number is due, which the parser itself lets pass.
            self.validate(parsed, skip_unset=False)
        except TypeError as error:
            self.error(str(error))
        for name, value in list(parsed.items(branches=False)):
            parsed[name] = _at_home(value)
        return parsed


def _candidates(message: str) -> list[str]:
    """Option names in a message of the parser that complains about unknown ones."""
    if not any(word in message.lower() for word in _UNKNOWN):
        return []
    return [(option or quoted).replace("-", "_") for option, quoted in _WORD.findall(message)]


def _suggest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean --x?)`` for a word that is not a known option."""
    if word in known:
        return ""
    full = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
    best = full[0] if full else (last[tail[0]] if tail else None)
    return f" (did you mean --{best}?)" if best else ""


def normalise(arguments: Sequence[str]) -> list[str]:
    """``--allow-rejected`` to ``--allow_rejected``: options may be written either way.

    A value that begins with one dash is joined to its option, which the parser would take for another option.

    Raises:
        UserError: a value of nothing, which as a path would be the current folder.
    """
    result: list[str] = []
    bare = False
    for argument in arguments:
        option = argument.startswith("--") and len(argument) > 2
        empty = bare and not argument
        if option:
            name, separator, value = argument.partition("=")
            argument = "--" + name[2:].replace("-", "_") + separator + value
            empty = bool(separator) and not value
        if empty:
            shown = argument[:-1] if option else result[-1]
            raise UserError(f"{shown}: its value is empty; a variable that is not set?")
        if bare and argument.startswith("-") and not option and argument not in ("-", "--", "-h"):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
        bare = option and "=" not in argument
    return result


def _at_home(value: Any) -> Any:
    """A value with ``~`` and ``~user`` expanded where paths, or lists of them, begin so."""
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return [_at_home(item) for item in value] if isinstance(value, list) else value


def pop_flag(arguments: list[str], name: str) -> bool:
    """Remove ``--name``, ``--name=true`` or ``--name true`` from a list of arguments; says what it was last."""
    found, index = False, 0
    while index < len(arguments):
        option, separator, value = arguments[index].partition("=")
        if option != f"--{name}":
            index += 1
            continue
        del arguments[index]
        if not separator:
            following = arguments[index].lower() if index < len(arguments) else ""
            value = arguments.pop(index) if following in ("true", "false") else "true"
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{name} {value}: expected true or false")
        found = value.lower() == "true"
    return found


def pop_option(arguments: list[str], name: str, default: str) -> str:
    """Remove ``--name VALUE`` or ``--name=VALUE`` from a list of arguments and return the last value."""
    value, index = default, 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == f"--{name}":
            if index + 1 >= len(arguments):
                raise UserError(f"--{name}: expected a value behind it")
            value = arguments[index + 1]
            del arguments[index : index + 2]
        elif argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
            del arguments[index]
        else:
            index += 1
    return value


def command_parser(
    name: str, function: Callable[..., Any], config_class: type[Any], preset: Mapping[str, Any], epilog: str
) -> CommandParser:
    """Parser of one command.

    Args:
        name: of the command. function: its entry; parameters other than ``config`` become options.
        config_class: dataclass whose fields become options; nested dataclasses become ``--part.field``.
        preset: overrides of the configuration. epilog: shown below the help, an example.
    """
    summary = (function.__doc__ or "").strip().split("\n\n")[0]
    parser = CommandParser(
        prog=f"python -m pipeline {name}", description=summary, epilog=epilog, allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_function_arguments(function, nested_key=None, skip={"config"}, fail_untyped=True)
    parser.add_class_arguments(config_class, nested_key=None, fail_untyped=True)
    set_defaults(parser, preset)
    return parser


def set_defaults(parser: ArgumentParser, preset: Mapping[str, Any], prefix: str = "") -> None:
    """Lay a preset's values below the command line; an unknown key is an error of the preset."""
    known = {action.dest for action in parser._actions}
    for key, value in leaves(preset, prefix).items():
        if key not in known:
            raise UserError(f"preset key {key} is unknown{_suggest(key, sorted(known))}")
        parser.set_defaults({key: value})


def expand_flags(parser: ArgumentParser, arguments: Sequence[str], positional: str | None = None) -> list[str]:
    """``--official`` to ``--official=true``: a yes-or-no option may be given without its value.

    Where one option of a command needs no name, its value may stand anywhere: ``--strict submission.tar.gz``.
    """
    switches = {f"--{action.dest}" for action in parser._actions if getattr(action, "_typehint", None) is bool}
    result: list[str] = []
    is_value = False
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else "--"
        # Whose name begins with a dash is a file if it is there.
        bare = not argument.startswith("-") or os.path.exists(argument)
        if is_value or (bare and positional is None):
            result.append(argument)
            is_value = False
        elif bare:
            result.append(f"--{positional}={argument}")
        elif argument in switches:
            valued = following.lower() in _YES_OR_NO or not (positional is not None or following.startswith("--"))
            result.append(argument if valued else f"{argument}=true")
            is_value = valued
        else:
            result.append(argument)
            is_value = argument.startswith("--") and "=" not in argument
    return result


def split_config(parsed: Namespace, function_parameters: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide parsed options into the function's own and those of the configuration."""
    values = {key: value for key, value in parsed.items(branches=False) if key != "config"}
    own = {key: value for key, value in values.items() if key in function_parameters}
    return own, {key: value for key, value in values.items() if key not in own}
