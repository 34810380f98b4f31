"""Base weights from Hugging Face, with a stand-in for its library: nothing leaves this machine."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub

from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, HubSource
from vqedge.errors import BackendUnavailable, FetchError

HUB_FILES = ("config.json", "model.safetensors")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    row = HubSource("org/model", "model.safetensors", HUB_FILES, "Apache-2.0", "a test")
    monkeypatch.setitem(SOURCES, "org/model", row)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_hub_source_records_commit_and_checksum(hub: FakeHub, cache: Path) -> None:
    weights = fetch("org/model", cache)
    assert weights.path == cache / "base/org--model/model.safetensors"
    assert weights.sha256 == hashlib.sha256(b"model.safetensors").hexdigest()
    assert weights.revision == "commit-of-main"
    assert hub.calls == [("org/model", name, "commit-of-main") for name in HUB_FILES]
    assert fetch("org/model", cache) == weights
    assert fetch("org/model", cache, verify=True) == weights
    assert len(hub.calls) == 2
    (weights.path.parent / "config.json").write_text("changed")
    assert fetch("org/model", cache) == weights
    assert len(hub.calls) == 4


def test_an_unreachable_hub_is_a_fetch_error(hub: FakeHub, cache: Path) -> None:
    hub.fault = ConnectionError("no route\nmore")
    with pytest.raises(FetchError, match=r"org/model: cannot download .*: no route; check"):
        fetch("org/model", cache)


def test_a_missing_hub_library_names_the_pip_line(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailable, match="pip install huggingface_hub"):
        fetch("org/model", cache)
