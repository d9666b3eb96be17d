"""Metadata that was never filled in is a suspicion that names the fields; what people fill in is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from submission.metadata import (
    EXAMPLE_METADATA,
    Metadata,
    load_metadata,
    metadata_message,
    metadata_suspicions,
    placeholders,
)
from tests.submission.spoilt_archives import FILLED

TEXTS = ["account_name", "unique_method_name", "authors", "affiliation"]


def left(**changes: Any) -> list[str]:
    return list(placeholders(metadata_message(dataclasses.replace(FILLED, **changes))))


def test_the_example_is_not_filled_in_and_says_where() -> None:
    (found,) = metadata_suspicions(metadata_message(load_metadata(EXAMPLE_METADATA)))
    assert found.kind == "metadata is not filled in"
    assert sorted(placeholders(metadata_message(load_metadata(EXAMPLE_METADATA)))) == sorted(TEXTS)
    assert all(f"{name} is " in found.examples[0] for name in TEXTS)
    assert "account_name is 'you@example.com', " in found.examples[0]


def test_the_example_describes_the_policy_of_this_repository() -> None:
    example = load_metadata(EXAMPLE_METADATA)
    own = {name: getattr(FILLED, name) for name in TEXTS}
    assert metadata_suspicions(metadata_message(dataclasses.replace(example, **own))) == []


@pytest.mark.parametrize("name", TEXTS)
def test_a_single_text_of_the_example_is_noticed(name: str) -> None:
    value = getattr(load_metadata(EXAMPLE_METADATA), name)
    assert left(**{name: value}) == [name]
    # Copied by hand, or one of several.
    shouted = [v.upper() for v in value] if isinstance(value, list) else f" {value.upper()}."
    assert left(**{name: shouted}) == [name]


def test_a_field_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metadata.yaml"
    path.write_text(f"{EXAMPLE_METADATA.read_text()}\naccount_name: other@lab.org\n")
    with pytest.raises(UserError, match=r"metadata\.yaml: not valid YAML: account_name occurs twice"):
        load_metadata(path)


def test_an_entry_that_is_filled_in_is_not_suspicious() -> None:
    assert metadata_suspicions(metadata_message(FILLED)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # What Waymo's tutorials send.
        ("account_name", "your_account@test.com"),
        ("unique_method_name", "sim_agents_tutorial"),
        ("unique_method_name", "waymax_sim_agents_tutorial"),
        ("authors", ["test"]),
        ("description", "Submission from the Sim Agents tutorial"),
        ("method_link", "https://waymo.com/open/"),
        # Templates.
        ("account_name", "YOUR_ACCOUNT_NAME@mail.com"),
        ("account_name", "me@example.org"),
        ("account_name", "user@lab.invalid"),
        ("account_name", "name@company.com"),
        ("affiliation", "YOUR_AFFILIATION"),
        ("affiliation", "<affiliation>"),
        ("affiliation", "[Your University]"),
        ("affiliation", "N/A"),
        ("affiliation", "-"),
        ("authors", ["Alan Turing", "Second Author"]),
        ("authors", ["Jane Doe"]),
        ("authors", ["Alan Turing", "..."]),
        ("unique_method_name", "my_method"),
        ("unique_method_name", "{{ method }}"),
        ("unique_method_name", "${METHOD}"),
        ("unique_method_name", "FIXME"),
        ("description", "TODO: describe the method"),
        ("description", "Lorem ipsum dolor sit amet"),
        ("description", "A placeholder until the paper is out"),
        ("method_link", "https://www.example.com/paper"),
        ("method_link", "http://example.net"),
        ("method_link", "http://localhost:8000/paper"),
        ("method_link", "https://"),
        ("method_link", "https://arxiv.org/abs/xxxx.xxxxx"),
        ("num_model_parameters", "0K"),
        ("public_model_names", ["TBD"]),
    ],
)
def test_other_placeholders(name: str, text: Any) -> None:
    assert left(**{name: text}) == [name]


@pytest.mark.parametrize(
    ("link", "suspicious"),
    [("not a url", True), ("soon", True), ("paper.pdf in the mail", False), ("doi:10.1000/182", False)]
    + [(f"{scheme}arxiv.org/abs/2510.18060", False) for scheme in ("", "https://", "http://")],
)
def test_a_link_is_an_address(link: str, suspicious: bool) -> None:
    found = metadata_suspicions(metadata_message(dataclasses.replace(FILLED, method_link=link)))
    assert [one.kind for one in found] == ["metadata has no link"] * suspicious
    assert not suspicious or repr(link) in found[0].examples[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("account_name", "me@lab.org"),
        ("account_name", "examplary@uni.edu"),
        ("unique_method_name", "m"),
        ("unique_method_name", "Test-time CAT-K"),
        ("authors", ["My Nguyen", "Xxavier Todo", "Ann Name"]),
        ("affiliation", "x"),
        ("affiliation", "Waymo"),
        ("affiliation", "Example Driven Robotics Lab"),
        ("affiliation", "Universidad de Todos los Santos"),
        ("description", "d"),
        ("description", "A drop-in for your simulator: no method sees more than {past, present}; a < b and c > d."),
        ("method_link", "https://x.org"),
        ("method_link", "https://github.com/lab/examples.git"),
        ("num_model_parameters", "10M"),
    ],
)
def test_what_people_do_fill_in(name: str, text: Any) -> None:
    assert left(**{name: text}) == []


def test_models_that_were_not_used() -> None:
    odd: Metadata = dataclasses.replace(FILLED, public_model_names=["SMART"])
    (found,) = metadata_suspicions(metadata_message(odd))
    assert found.kind == "metadata contradicts itself"
    assert metadata_suspicions(metadata_message(dataclasses.replace(odd, uses_public_model_pretraining=True))) == []
