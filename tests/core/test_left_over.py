"""What a killed process left half-written goes with the next that writes to the same folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import EngineRecord, TensorRecord
from vqedge.config import EncoderConfig, QuantizerConfig
from vqedge.data.generated import GeneratedClips
from vqedge.engines import cache_engine
from vqedge.files import replacing
from vqedge.training.cache import ClipCache
from vqedge.training.features import FeatureCache
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.encoders import auto
from vqedge_runtime.encoders.compiled import keep_file
from vqedge_runtime.encoders.fake import FakeEncoder

ENCODER, CLIPS = EncoderConfig(), GeneratedClips(0, 3)


def test_an_encode_removes_what_a_killed_one_left(tmp_path: Path, demo_clip: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left = out / ".vqedge-0123.tmp"
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    with replacing(out / "b.vqt") as written:  # by another one, at the same time
        for path in (left, written):
            path.write_bytes(b"half")
            os.utime(path, (0, 0))
        batch = BatchEncoder(FakeEncoder(32, 576), manifest, 32)
        outcomes = list(batch.run([Job(demo_clip, out / f"{name}.vqt") for name in ("a", "c")]))
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert {*out.iterdir()} == {out / "a.vqt", out / "c.vqt", written}
    assert (out / "b.vqt").read_bytes() == b"half"


def _features(cache: Path) -> Path:
    """Those of training; no shard has to be made."""
    kept: Any = FeatureCache(cache, ENCODER, CLIPS)
    assert not list(kept.fill([], None))
    return kept.folder


def _clips(cache: Path) -> Path:
    kept: Any = ClipCache(cache, ENCODER, QuantizerConfig(), CLIPS, (8,))
    assert not list(kept.fill([], None))
    return kept.folder(8)


def _engines(cache: Path) -> Path:
    (cache / "built").write_bytes(b"plan")
    tensor = TensorRecord(name="frames", dtype="uint8", shape=(8, 224, 224, 3))
    record = EngineRecord(
        key="k",
        file="engines/k.engine",
        tensorrt_flavour="tensorrt",
        tensorrt_version="10.3.0",
        compute_capability="8.7",
        plugin_sha256=None,
        onnx_sha256="a" * 64,
        precision="fp16",
        version_compatible=False,
        hardware_compatible=False,
        inputs=(tensor,),
        outputs=(tensor,),
        profiles=(),
    )
    return cache_engine(cache / "built", record).parent


def _kernels(cache: Path) -> Path:
    keep_file(cache / "kernels/a", b"code", 8)
    return cache / "kernels"


def _backends(cache: Path) -> Path:
    auto._remember("this machine", auto.Measured(clip_ms={"onnxruntime": 1.0}))
    return cache


@pytest.mark.parametrize("write", [_features, _clips, _engines, _kernels, _backends])
def test_who_writes_to_the_cache_removes_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path))
    folder = write(tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    left, young = folder / ".vqedge-0123.tmp", folder / ".vqedge-4567.tmp"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    write(tmp_path)
    assert not left.exists() and young.exists()
