"""One line about a fault, whatever a stranger's file is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from vqedge.errors import BundleError
from vqedge.validation import first_fault


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 1


def fault_of(values: dict[str, object]) -> str:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate(values)
    return first_fault(caught.value)


def test_a_fault_has_its_place() -> None:
    assert fault_of({"size": "much"}).startswith("size: Input should be a valid integer")
    assert fault_of({"sise": 2}) == "sise: Extra inputs are not permitted"


def test_a_message_cannot_speak_to_the_terminal() -> None:
    error = BundleError("a\x1b[2J\tb\u202e\nc é 語: wrong")
    assert str(error) == r"a\x1b[2J\tb\u202e c é 語: wrong"
    assert str(BundleError("")) == ""


def test_a_long_key_is_cut() -> None:
    line = fault_of({"a" * 10_000: 1})
    assert len(line) < 400 and line.endswith("a...: Extra inputs are not permitted")


@given(st.text().filter(lambda key: key != "size"))
def test_every_key_gives_one_printable_line(key: str) -> None:
    line = fault_of({key: 1})
    assert line.isprintable() and len(line) < 500
