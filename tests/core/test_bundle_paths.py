"""Where an open bundle's files are, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import open_bundle


def test_its_files_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are called what the user called them while that leads there."""
    root = write_bundle(tmp_path / "tiny.vqedge").root
    (root.parent / "elsewhere").mkdir()
    monkeypatch.chdir(root.parent)
    bundle = open_bundle(Path(root.name))
    assert bundle.path_of("llm") == Path(root.name, "llm.gguf")
    monkeypatch.chdir("elsewhere")
    assert bundle.path_of("llm") == root / "llm.gguf" and bundle.root == Path(root.name)
