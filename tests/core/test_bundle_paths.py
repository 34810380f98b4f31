"""Where an open bundle's files are, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import open_bundle
from vqedge.errors import BundleError


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


@pytest.mark.parametrize("gone", [False, True])
def test_only_files_that_are_to_be_opened_have_to_be_as_they_were(
    tmp_path: Path, gone: bool
) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "tiny.vqedge").root)
    file = bundle.path_of("llm")
    file.unlink() if gone else file.write_bytes(b"another")
    bundle.check_unchanged({"encoder.onnx"})
    with pytest.raises(BundleError, match=r"llm\.gguf: has changed .*, or is gone; open"):
        bundle.check_unchanged({"encoder.onnx", "llm.gguf"})
