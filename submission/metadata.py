"""Metadata of a submission: the fields of SimAgentsChallengeSubmission except rollouts."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import UserError, did_you_mean
from submission.suspicion import Suspicion

EXAMPLE_METADATA = Path(__file__).with_name("metadata.example.yaml")

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# The proto asks for an integer and a suffix; Waymo's own tutorial sends a bare integer.
_PARAMETERS = re.compile(r"\d+[KMBT]?")
# Placeholders anywhere in a field: template marks, reminders (in capitals only, since some languages have the
# words), and reserved hosts (RFC 2606).
_MARK = re.compile(
    r"""<[A-Za-z][^<>]*> | \{\{ | \$\{ | \$[A-Z_]{3,} | \b(?:TODO|TBD|TBA|FIXME|XXX+)\b
    | (?i: lorem\ ipsum | \bchange[ _-]?me\b | \bfill[ _-](?:this[ _-]|me[ _-])?in\b | \bplace[ _-]?holder\b
    | /xxx+[./]xxx+\b | [@/.]example(?:\.(?:com|org|net|edu))?(?=[/:?\#]|$) | \.(?:invalid|test|localhost)(?=[/:]|$)
    | //localhost\b )""",
    re.VERBOSE,
)
# Placeholders that are a whole field, as in templates and Waymo's tutorials.
_WHOLE = re.compile(
    r"""[\W_]* | n/?a | none | null | unknown | string | text | dummy | foo | bar | asdf | https?://(?:www\.)?
    | \W*(?:enter[ _]|insert[ _])?your(?:[\W_].{0,40})? | my[ _-]?(?:method|model|name|team|paper|lab)
    | test(?:ing)? | e-?mail | (?:full[ _])?names? | authors? | affiliation | institution | description
    | method(?:[ _]?name)?
    | (?:first|second|third|other|co|lead)[ _-]?author | author[ _]?[\dA-Z] | j(?:ohn|ane)\ (?:q\.\ )?doe
    | (?:you|user(?:name)?|name|first[\W_]?last|someone|foo|e-?mail|xxx+)@.*
    | (?:\w+_)?tutorial | submission\ from\ the\ .*tutorial | https://waymo\.com/open/?""",
    re.VERBOSE | re.IGNORECASE,
)
# With or without https://; also doi:.
_LINK = re.compile(r"(?:\w+:/*)?[^\s/]+\.[^\s/.]+")
# Fields that differ between entries. Description, link and size of the example are right for this repository's
# policy.
_OWN = ("account_name", "unique_method_name", "authors", "affiliation")
_REQUIRED_TEXT = ("unique_method_name", "affiliation", "description", "method_link")
_REQUIRED_FLAGS = ("uses_lidar_data", "uses_camera_data", "uses_public_model_pretraining")


@dataclass(frozen=True)
class Metadata:
    """Fields as in the proto; see submission/metadata.example.yaml for their meaning."""

    account_name: str
    unique_method_name: str
    authors: list[str]
    affiliation: str
    description: str
    method_link: str
    uses_lidar_data: bool
    uses_camera_data: bool
    uses_public_model_pretraining: bool
    num_model_parameters: str
    acknowledge_complies_with_closed_loop_requirement: bool
    public_model_names: list[str] = dataclasses.field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice; YAML silently takes the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_metadata(path: Path) -> Metadata:
    """Read a YAML (or JSON) file.

    Raises:
        UserError: unreadable, not a mapping, an unknown or missing key, a value of the wrong type, or a value that
            the server refuses.
    """
    try:
        # Plain values only: tags that would construct objects are errors.
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; copy submission/metadata.example.yaml and fill it in"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of field names to values")
    fields = {field.name: field for field in dataclasses.fields(Metadata)}
    for key in values:
        if key not in fields:
            raise UserError(f"{path}: unknown field {key}{did_you_mean(str(key), fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{path}: field {missing[0]} is missing; see submission/metadata.example.yaml")
    metadata = Metadata(**{key: _typed(path, key, value, str(fields[key].type)) for key, value in values.items()})
    defects = metadata_defects(metadata_message(metadata))
    if defects:
        raise UserError(f"{path}: {defects[0]}")
    return metadata


def _typed(path: Path, key: str, value: Any, kind: str) -> Any:
    # Aliases make values that are too large to print.
    printer = reprlib.Repr()
    printer.maxlevel = 1
    shown = printer.repr(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise UserError(f"{path}: {key} is {shown}, expected true or false")
        return value
    if kind == "list[str]":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{path}: {key} is {shown}, expected a list of texts")
        return value
    if isinstance(value, (bool, list, dict)) or value is None:
        raise UserError(f"{path}: {key} is {shown}, expected a text")
    return str(value).strip()


def metadata_message(metadata: Metadata) -> Any:
    """A ``SimAgentsChallengeSubmission`` without rollouts."""
    return pb.SimAgentsChallengeSubmission(
        submission_type=pb.SimAgentsChallengeSubmission.SIM_AGENTS_SUBMISSION, **dataclasses.asdict(metadata)
    )


def metadata_defects(message: Any) -> list[str]:
    """Reasons for the server to refuse a submission's metadata, one line each."""
    # The parser returns bytes where a string is not UTF-8.
    if garbled := sorted(name for name, values in _texts(message) if not all(isinstance(v, str) for v in values)):
        return [f"{name} is not UTF-8" for name in garbled]
    defects = []
    if message.submission_type != pb.SimAgentsChallengeSubmission.SIM_AGENTS_SUBMISSION:
        defects.append("submission_type is not SIM_AGENTS_SUBMISSION")
    if not _EMAIL.fullmatch(message.account_name):
        defects.append(f"account_name is {message.account_name!r}, expected the e-mail registered with Waymo")
    defects += [f"{name} is empty" for name in _REQUIRED_TEXT if not getattr(message, name).strip()]
    if not message.authors or not all(author.strip() for author in message.authors):
        defects.append("authors: expected at least one name")
    defects += [f"{name} is not set" for name in _REQUIRED_FLAGS if not message.HasField(name)]
    if message.uses_public_model_pretraining and not message.public_model_names:
        defects.append("public_model_names is empty, but uses_public_model_pretraining is true")
    if not _PARAMETERS.fullmatch(message.num_model_parameters):
        defects.append(
            f"num_model_parameters is {message.num_model_parameters!r}, expected an integer with K, M, B or T (65K)"
        )
    if not message.acknowledge_complies_with_closed_loop_requirement:
        defects.append("acknowledge_complies_with_closed_loop_requirement is not true")
    return defects


@cache
def _example_texts() -> dict[str, frozenset[str]]:
    """Texts of the example by field, for the fields that differ between entries."""
    message = metadata_message(load_metadata(EXAMPLE_METADATA))
    return {name: frozenset(map(_plain, map(str, values))) for name, values in _texts(message) if name in _OWN}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def placeholders(message: Any) -> dict[str, str]:
    """Fields of a submission's metadata that still hold a placeholder, with their text."""
    fields: dict[str, str] = {}
    for name, values in _texts(message):
        for value in values:
            text = str(value).strip()
            copied = _plain(text) in _example_texts().get(name, ())
            if copied or _MARK.search(text) or _WHOLE.fullmatch(text):
                fields.setdefault(name, text)
    if re.fullmatch(r"0+[KMBT]?", message.num_model_parameters):
        fields["num_model_parameters"] = message.num_model_parameters
    return fields


def metadata_suspicions(message: Any) -> list[Suspicion]:
    """Suspicions about a submission's metadata: accepted by the server, but certainly a mistake."""
    suspicions = []
    if left := placeholders(message):
        fields = ", ".join(f"{name} is {reprlib.repr(text)}" for name, text in left.items())
        suspicions.append(Suspicion("metadata is not filled in", (f"{fields}; expected those of your entry",)))
    link = message.method_link.strip()
    if link and not _LINK.match(link) and "method_link" not in left:
        text = f"method_link is {reprlib.repr(link)}; expected the address of a paper or a page"
        suspicions.append(Suspicion("metadata has no link", (text,)))
    if message.public_model_names and not message.uses_public_model_pretraining:
        names = reprlib.repr(list(message.public_model_names))
        text = f"public_model_names is {names}, but uses_public_model_pretraining is false"
        suspicions.append(Suspicion("metadata contradicts itself", (text,)))
    return suspicions


def _texts(message: Any) -> Iterator[tuple[str, Sequence[str | bytes]]]:
    """Name and values of every text field."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            value = getattr(message, field.name)
            yield field.name, value if field.is_repeated else [value]
