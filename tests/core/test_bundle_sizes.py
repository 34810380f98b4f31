"""Sizes in a manifest: refused before a video is decoded into them, or rows are read by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import Bundle, open_bundle
from vqedge.bundle.manifest import _canonical
from vqedge.errors import BundleError

Change = Callable[[dict[str, Any]], Any]


def _changed(root: Path, change: Change) -> Bundle:
    """A bundle whose manifest says something else, and is canonical, with a fitting digest."""
    file = write_bundle(root).root / "manifest.json"
    raw = json.loads(file.read_bytes())
    change(raw)
    del raw["digest"]
    raw["digest"] = hashlib.sha256(_canonical(raw)).hexdigest()
    file.write_bytes(_canonical(raw))
    return open_bundle(root)


def _of(part: str, **values: Any) -> Change:
    return lambda raw: raw[part].update(values)


def _clip(frames: int, size: int, grid: int) -> Change:
    """In every place, so that nothing contradicts it."""
    inputs = [{"name": "frames", "dtype": "uint8", "shape": [frames, size, size, 3]}]
    return _of("encoder", frames=frames, size=size, grid=grid, inputs=inputs)


def _with_map(*shape: int) -> Change:
    outputs = [{"name": "index_map", "dtype": "int32", "shape": shape}]
    return _of("encoder", outputs=outputs)


def _flat(raw: dict[str, Any]) -> None:
    raw["encoder"]["inputs"][0]["shape"].pop()


REFUSED: dict[str, Change] = {
    r"encoder\.onnx: frames is not \(80, 224, 224, 3\), or": _of("encoder", frames=80),
    r"frames is not \(8, 4, 4, 3\), or index_map not \(8, 16, 16\)": _of("encoder", size=4),
    r"frames is not \(8, 224, 224, 3\)": _flat,
    r"index_map not \(8, 16, 16\)": _with_map(8, 15, 16),
    "30000 frames, size 224, grid 1 are too many": _clip(30_000, 224, 1),
    "65 frames, size 2048, grid 1 are too many": _clip(65, 2048, 1),
    "8 frames, size 224, grid 91 are too many": _clip(8, 224, 91),
    "8 frames, size 224, grid 2147483648 are too many": _of("encoder", grid=1 << 31),
    r"encoder\.size: Input should be less than or equal to 4096": _clip(1, 4097, 1),
    "video_words 49152, vocab_size 49152": _of("llm", video_words=49152),
    r"bridge\.onnx: rows are not of llm\.width 7": _of("llm", width=7),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_sizes_that_cannot_be(tmp_path: Path, problem: str) -> None:
    with pytest.raises(BundleError, match=f"{problem}.*; export again"):
        _changed(tmp_path / "tiny.vqedge", REFUSED[problem])


@pytest.mark.parametrize("most", [(64, 2048, 32), (16, 4096, 64), (1, 224, 256)])
def test_the_largest_clips_open(tmp_path: Path, most: tuple[int, int, int]) -> None:
    encoder = _changed(tmp_path / "tiny.vqedge", _clip(*most)).manifest.encoder
    assert (encoder.frames, encoder.size, encoder.grid) == most


def test_free_dimensions_contradict_nothing(tmp_path: Path) -> None:
    free = [{"name": "frames", "dtype": "uint8", "shape": ["t", 224, 224, 3]}]
    _changed(tmp_path / "tiny.vqedge", _of("encoder", inputs=free))
