"""A checkpoint that a run saves anew while a bundle is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_bundle import tiny_facts

from vqedge.bundle import Bundle
from vqedge.checkpoint import LORA, checkpoint_sha256
from vqedge.errors import CheckpointError
from vqedge.model.checkpoint import Checkpoint
from vqedge_export import assemble, pipeline
from vqedge_export.assemble import assemble_bundle
from vqedge_export.pipeline import export_bundle
from vqedge_export.targets import BASE, LLM, Making, Target

Make = Callable[[Path, Path], Bundle]


def assembled(checkpoint: Path, out: Path) -> Bundle:
    return assemble_bundle(checkpoint, out, precision="fp32")


def exported(checkpoint: Path, out: Path) -> Bundle:
    never: Any = None  # no parity is measured
    return export_bundle(checkpoint, out, never, precision="fp32", check=False)[0]


@pytest.mark.usefixtures("base_gguf")
@pytest.mark.parametrize("make", [assembled, exported])
def test_no_bundle_is_of_two_saves(
    checkpoint: Checkpoint,
    graph: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
) -> None:
    copy, out = tmp_path / "checkpoint", tmp_path / "out.vqedge"
    shutil.copytree(checkpoint.path, copy)
    saves = False

    def llm(making: Making) -> tuple[()]:
        (making.folder / LLM).write_bytes(b"a language model")
        if saves:
            (copy / LORA).write_bytes(b"of the next save")
        return ()

    record = tiny_facts().llm.model_copy(update={"width": checkpoint.config.llm.width})
    monkeypatch.setattr(assemble, "_llm_record", lambda *_: record)
    monkeypatch.setattr(pipeline, "_traced", lambda *_: graph)
    for module in (assemble, pipeline):
        monkeypatch.setattr(module, "BASE", (BASE[0], Target("llm", (), llm)))
    made = make(copy, out)
    assert made.manifest.provenance.checkpoint_sha256 == checkpoint_sha256(copy)
    shutil.rmtree(out)
    saves = True
    with pytest.raises(CheckpointError, match="checkpoint: was saved anew meanwhile; run again"):
        make(copy, out)
    assert [*tmp_path.iterdir()] == [copy]
