"""`vqedge check --videos`: lighter encoders on the clips of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import asking_facts, fill_folder, write_bundle

from vqedge.bundle import VariantRecord, bundle_writer
from vqedge.commands import check_flips
from vqedge.data.demo import write_demo
from vqedge.errors import ConfigError
from vqedge_export.flips import Reading
from vqedge_runtime.encoders import ENCODERS
from vqedge_runtime.encoders.protocol import Missing, made_question


def test_lighter_encoders_are_compared_on_the_clips_of_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = write_bundle(tmp_path / "a.vqedge")
    rng = np.random.default_rng(0)
    features, ids = rng.normal(size=(64, 8)).astype(np.float32), np.arange(64, dtype=np.int32) % 4
    features += 9 * np.eye(8, dtype=np.float32)[ids]
    neighbour = np.arange(64) ^ 1  # every patch is near another code
    write_demo(tmp_path / "a.mp4")
    write_demo(tmp_path / "b.mp4")
    monkeypatch.setattr(check_flips, "OnnxReader", lambda *_: lambda *_: Reading(features, ids))
    read, order = check_flips.frames_in_folder, list[str]()
    readers = {
        "same": lambda *_: order.append("compared") or Reading(features, ids),
        "other": lambda *_: Reading(features[neighbour], ids[neighbour]),
    }
    monkeypatch.setattr(check_flips, "_readers", lambda _: readers)

    def noted(*arguments: Any) -> Iterator[Any]:
        for clip in read(*arguments):
            order.append("read")
            yield clip

    monkeypatch.setattr(check_flips, "frames_in_folder", noted)
    rows = check_flips.flips_of(opened, tmp_path)
    assert order == ["read", "compared"] * 2, "one clip at a time: a folder may be large"
    assert (rows["same"].clips, rows["same"].nearest_differ) == (2, 0.0)
    assert rows["other"].nearest_differ > 0.9 and rows["other"].safe_nearest_differ > 0.9
    assert check_flips.flips_of(opened, tmp_path, 1)["same"].clips == 1
    monkeypatch.setattr(check_flips, "_readers", lambda _: {})
    with pytest.raises(ConfigError, match="no lighter encoder to compare"):
        check_flips.flips_of(opened, tmp_path)


def test_every_encoder_that_is_compared_on_clips_hears_the_same_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[Any] = []

    def reader(_: Path, text: Any = None) -> Any:
        heard.append(text)
        return lambda *_: Reading(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.int32))

    facts = asking_facts()
    int8 = VariantRecord(file="encoder.int8.onnx", precision="int8")
    encoder = facts.encoder.model_copy(update={"variants": (int8,)})
    with bundle_writer(tmp_path / "asking.vqedge") as draft:
        fill_folder(draft.folder)
        (draft.folder / int8.file).write_bytes(b"int8")
        bundle = draft.finish(facts.model_copy(update={"encoder": encoder}))
    write_demo(tmp_path / "a.mp4")
    monkeypatch.setattr(check_flips, "OnnxReader", reader)
    absent = replace(ENCODERS["openvino"], missing=lambda: Missing("", ""))
    monkeypatch.setitem(ENCODERS, "openvino", absent)
    check_flips.flips_of(bundle, tmp_path)
    question = made_question(bundle.manifest)
    assert question is not None and len(heard) == 2
    assert all(np.array_equal(text, question) for text in heard)
