"""What has no room is told before the work: an ONNX file, memory, the disk of temporary files."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnx
import pytest
import torch
from hf_maker import write_llava, write_tower
from safetensors.numpy import load_file
from torch import nn

from vqedge.commands.import_ import run_import
from vqedge.errors import CheckpointError, ExportError
from vqedge_export import onnx_export, parity, pipeline
from vqedge_export.hf import importing
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.pipeline import export_bundle


def bytes_of(checkpoint: Path) -> int:
    """Of the encoder in float32, all that the graph of these sources holds."""
    sizes = {"position_cls": 0, "position_grid": 0}
    for name in ("encoder.safetensors", "model.safetensors"):
        for tensor, array in load_file(checkpoint / name).items():
            sizes.setdefault(tensor, 4 * array.size)
    return sum(sizes.values())


def test_an_encoder_that_no_onnx_file_can_hold_is_refused_at_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tower(tmp_path / "source", "clip")
    sizes = [
        bytes_of(checkpoint_from_folder(source, tmp_path / f"c{block}", block=block).path)
        for block in (1, 2)
    ]
    monkeypatch.setattr(importing, "LARGEST_BYTES", sizes[1])
    checkpoint_from_folder(source, tmp_path / "whole", block=2)
    monkeypatch.setattr(importing, "LARGEST_BYTES", sizes[1] - 1)
    with pytest.raises(CheckpointError, match=r"2 GiB .*; import it with --block 1 or less$"):
        checkpoint_from_folder(source, tmp_path / "out", block=2)
    assert not (tmp_path / "out").exists()
    checkpoint_from_folder(source, tmp_path / "less", block=1)
    monkeypatch.setattr(importing, "LARGEST_BYTES", sizes[0] // 2)
    with pytest.raises(CheckpointError, match=r"import a smaller model$"):
        checkpoint_from_folder(source, tmp_path / "out", block=1)


def test_a_llava_is_sent_to_the_mode_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_llava(tmp_path / "source")
    size = bytes_of(checkpoint_from_folder(source, tmp_path / "codes", mode="codes").path)
    monkeypatch.setattr(importing, "LARGEST_BYTES", size)
    with pytest.raises(CheckpointError, match=r"import it with --mode codes$"):
        checkpoint_from_folder(source, tmp_path / "out")
    checkpoint_from_folder(source, tmp_path / "again", mode="codes")
    monkeypatch.setattr(importing, "LARGEST_BYTES", size - 1)
    with pytest.raises(CheckpointError, match=r"import a smaller model$"):
        checkpoint_from_folder(source, tmp_path / "out")


def test_a_clip_that_takes_much_memory_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_tower(tmp_path / "source", "dinov2"))
    run_import(source, tmp_path / "few", frames=1)
    assert "memory" not in capsys.readouterr().err
    run_import(source, tmp_path / "many", frames=45, size=266)
    rows = (266 // 7) ** 2 + 1
    taken = f"about {8 * 45 * 2 * rows**2 / 1e9:.1f} GB"
    told = capsys.readouterr().err
    assert f"a clip of 45 frames takes {taken} of memory" in told
    assert "a smaller --size or fewer --frames" in told


class TracedError(Exception):
    """The export got as far as that."""


def test_memory_that_cannot_hold_the_comparison_is_told_before_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_llava(tmp_path / "source")
    checkpoint = checkpoint_from_folder(source, tmp_path / "checkpoint", frames=1).path
    monkeypatch.setattr(pipeline, "_traced", Mock(side_effect=TracedError))
    memory = tmp_path / "meminfo"
    monkeypatch.setattr(parity, "_MEMORY", memory)

    def export(free_kb: int, **options: Any) -> None:
        memory.write_text(f"MemTotal: 9 kB\nMemAvailable: {free_kb} kB\nSwapFree:  0 kB\n")
        export_bundle(checkpoint, tmp_path / "out.vqedge", Mock(), **options)

    with pytest.raises(ExportError, match=r"llm\.gguf: .* 0\.0 GB are free; --no-check skips that"):
        export(100)
    assert not (tmp_path / "out.vqedge").exists()
    for free_kb, options in ((100, {"check": False}), (10_000_000, {})):
        with pytest.raises(TracedError):
            export(free_kb, **options)
    memory.unlink()
    assert parity._free_bytes() is None, "another system"


class Doubled(nn.Module):
    """Something to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000, 500))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize("step", ["export", "load", "folder"])
def test_a_full_disk_of_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    place, name = {
        "export": (torch.onnx, "export"),
        "load": (onnx, "load"),
        "folder": (tempfile, "TemporaryDirectory"),
    }[step]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(place, name, full)
    told = rf"{tmp_path}: the traced encoder, 2 MB, .*No space left.*; set TMPDIR to a folder"
    with pytest.raises(ExportError, match=told):
        onnx_export._traced(Doubled(), (torch.ones(1, 1000),), ["x"], ["y"])
    assert not list(tmp_path.iterdir())
