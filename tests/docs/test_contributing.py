"""CONTRIBUTING.md sends nobody to a place that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = "docs|export|models|runtime|scripts|tests|vqedge"
PATHS = re.findall(rf"[`(]((?:{FOLDERS})/[\w./-]+|\w+\.(?:md|toml))", PAGE)
NAMES = re.findall(r"`(\w+)` in `([\w/]+\.py)`", PAGE)


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("name", "path"), NAMES)
def test_every_name_is_in_its_module(name: str, path: str) -> None:
    assert re.search(rf"^(?:class |def )?{name}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE)
