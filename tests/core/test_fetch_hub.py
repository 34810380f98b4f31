"""Base weights from Hugging Face, with a stand-in for its library: nothing leaves this machine."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pytest

from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, HubSource
from vqedge.errors import BackendUnavailable, FetchError

HUB_FILES = ("config.json", "model.safetensors")


class _FakeHub:
    """Stands in for the huggingface_hub module."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.calls: list[tuple[str, str]] = []

    def HfApi(self) -> _FakeHub:
        return self

    def model_info(self, repo_id: str, revision: str) -> types.SimpleNamespace:
        if self.fault:
            raise self.fault
        return types.SimpleNamespace(sha=f"commit-of-{revision}")

    def hf_hub_download(self, repo_id: str, name: str, revision: str, local_dir: Path) -> str:
        self.calls.append((name, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(name.encode())
        return str(local_dir / name)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> _FakeHub:
    fake = _FakeHub()
    row = HubSource("org/model", "model.safetensors", HUB_FILES, "Apache-2.0", "a test")
    monkeypatch.setitem(SOURCES, "org/model", row)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_hub_source_records_commit_and_checksum(hub: _FakeHub, cache: Path) -> None:
    weights = fetch("org/model", cache)
    assert weights.path == cache / "base/org--model/model.safetensors"
    assert weights.sha256 == hashlib.sha256(b"model.safetensors").hexdigest()
    assert weights.revision == "commit-of-main"
    assert hub.calls == [(name, "commit-of-main") for name in HUB_FILES]
    assert fetch("org/model", cache) == weights
    assert fetch("org/model", cache, verify=True) == weights
    assert len(hub.calls) == 2
    (weights.path.parent / "config.json").write_text("changed")
    assert fetch("org/model", cache) == weights
    assert len(hub.calls) == 4


def test_an_unreachable_hub_is_a_fetch_error(hub: _FakeHub, cache: Path) -> None:
    hub.fault = ConnectionError("no route\nmore")
    with pytest.raises(FetchError, match=r"org/model: cannot download .*: no route; check"):
        fetch("org/model", cache)


def test_a_missing_hub_library_names_the_pip_line(
    hub: _FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailable, match="pip install huggingface_hub"):
        fetch("org/model", cache)
