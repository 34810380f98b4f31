"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest

from vqedge.commands.output import json_result
from vqedge.json_text import json_text


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"a": [math.nan, 1.5, (math.inf, True)], "b": {"c": -math.inf, "d": None, "e": 0}}
    json_result(document)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5, [None, True]], "b": {"c": None, "d": None, "e": 0}}
    assert json_text(found, indent=2, sort_keys=True).startswith('{\n  "a": [')
