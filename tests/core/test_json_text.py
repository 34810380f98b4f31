"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest

from vqedge.commands.output import json_result
from vqedge.json_text import json_text, without_repeats


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"a": [math.nan, 1.5, (math.inf, True)], "b": {"c": -math.inf, "d": None, "e": 0}}
    json_result(document)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5, [None, True]], "b": {"c": None, "d": None, "e": 0}}
    assert json_text(found, indent=2, sort_keys=True).startswith('{\n  "a": [')


def test_a_key_stands_in_an_object_once() -> None:
    def read(text: str) -> object:
        return json.loads(text, object_pairs_hook=without_repeats)

    assert read('{"a": {"a": 1}, "b": [{"a": 2}]}') == {"a": {"a": 1}, "b": [{"a": 2}]}
    with pytest.raises(ValueError, match="a key is repeated: 'b'"):
        read('{"a": [{"b": 1, "c": 2, "b": 1}]}')
