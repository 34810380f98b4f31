"""The encoder on OpenVINO: cut at the features, the quantizer exact, compiled once."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as onnx_runtime
import pytest

from vqedge.budget import ADAPTIVE
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import BackendUnavailable, BundleError, ConfigError
from vqedge_export.flips import OnnxReader, Reading, encoders_compared

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'vqedge[openvino]'")

from vqedge_runtime.encoders.compiled import keep_file, kept
from vqedge_runtime.encoders.openvino import OpenVinoEncoder


@pytest.fixture
def path(model: bytes, tmp_path: Path, own_cache: Path) -> Path:
    (tmp_path / "encoder.onnx").write_bytes(model)
    return tmp_path / "encoder.onnx"


def clip(index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return frames_from_scene(scene_from_seed(12, index), 2)


def test_ids_are_those_of_the_features_it_found(path: Path) -> None:
    """K-means runs in float32 whatever type the ViT has: ONNX Runtime finds the same ids."""
    OpenVinoEncoder(path, 1)
    encoder = OpenVinoEncoder(path, 1)  # from the cache, as on every start but the first
    assert encoder.name.startswith("openvino CPU ")
    assert encoder.clip_shape == clip().shape
    exact = quantizer_of(path)
    for budget in (8, 64, ADAPTIVE):
        found = encoder.encode(clip(), budget)
        feeds = {"features": encoder.features(clip()), "budget": np.array(budget, np.int64)}
        index_map, mask = exact.run(["index_map", "mask"], feeds)
        np.testing.assert_array_equal(found.index_map, index_map)
        assert found.count == mask.sum()


def test_features_are_near_to_those_of_float32(path: Path) -> None:
    encoder = OpenVinoEncoder(path, 1)

    def read(frames: np.ndarray[Any, np.dtype[np.uint8]], budget: int) -> Reading:
        ids = encoder.encode(frames, budget).index_map.reshape(-1)
        return Reading(encoder.features(frames).copy(), ids)

    found = encoders_compared(OnnxReader(path), {"openvino": read}, map(clip, range(3)), 32)
    assert found["openvino"].safe_nearest_differ <= 0.01


def test_the_second_start_reads_what_the_first_compiled(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = OpenVinoEncoder(path, 1).encode(clip(), 32)
    assert len(list((tmp_path / "cache/openvino").glob("*.blob"))) == 2
    monkeypatch.setattr("vqedge_runtime.encoders.openvino._halves", lambda *_: pytest.fail("again"))
    again = OpenVinoEncoder(path, 1).encode(clip(), 32)
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.index_map, first.index_map)


@pytest.mark.parametrize("damage", ["flip", "refused"])
def test_a_damaged_cache_is_made_anew(path: Path, tmp_path: Path, damage: str) -> None:
    OpenVinoEncoder(path, 1)
    (blob,) = (tmp_path / "cache/openvino").glob("*.vit.blob")
    whole = blob.read_bytes()
    if damage == "flip":
        blob.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    else:
        keep_file(blob, b"no model", 8)
    assert OpenVinoEncoder(path, 1).encode(clip(), 32).count == 32
    assert kept(blob) not in (None, b"no model")


def test_where_nobody_knows_the_cache_it_is_compiled_at_every_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQEDGE_CACHE", "~no-such-user/cache")
    assert OpenVinoEncoder(path, 1).encode(clip(), 32).count == 32


def test_only_the_encoders_opened_last_are_kept(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache/openvino"
    folder.mkdir(parents=True)
    for number in range(8):
        aged(folder / f"{number}.blob", number)
    OpenVinoEncoder(path, 1)
    blobs = {*folder.glob("*.vit.blob"), *folder.glob("*.quantizer.blob")}
    assert set(folder.iterdir()) == blobs | {folder / f"{number}.blob" for number in range(6)}
    for blob in blobs:
        aged(blob, 9)
    OpenVinoEncoder(path, 1)  # in use again
    keep_file(folder / "another.blob", b"", 3)
    assert set(folder.iterdir()) == {*blobs, folder / "another.blob"}


def aged(file: Path, minutes: int) -> None:
    file.touch()
    os.utime(file, (file.stat().st_mtime - 60 * (1 + minutes),) * 2)


def test_a_closed_encoder_and_a_strange_file_say_so(path: Path) -> None:
    encoder = OpenVinoEncoder(path, 1)
    encoder.close()
    encoder.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        encoder.encode(clip(), 32)
    bare = onnx.load(path)
    del bare.functions[:]
    onnx.save(bare, path)
    with pytest.raises(BackendUnavailable, match="exported with --plugin-node"):
        OpenVinoEncoder(path, 1)
    path.write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot load it"):
        OpenVinoEncoder(path, 1)


def test_no_room_for_the_copy_is_no_fault_of_the_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(BackendUnavailable, match=rf"{tmp_path}/.*: a copy .*; set TMPDIR"):
            OpenVinoEncoder(path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_place_for_the_copy_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(ConfigError, match="set TMPDIR"):
        OpenVinoEncoder(path, 1)


def quantizer_of(path: Path) -> onnx_runtime.InferenceSession:
    """The part of the encoder behind `features`, in ONNX Runtime."""
    model = onnx.load(path)
    maker = {name: node for node in model.graph.node for name in node.output}
    needed, waiting = [], [item.name for item in model.graph.output]
    while waiting:
        name = waiting.pop()
        if name != "features" and name in maker and maker[name] not in needed:
            needed.append(maker[name])
            waiting += maker[name].input
    kept = [node for node in model.graph.node if node in needed]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [512, 384])
    )
    frames = next(item for item in model.graph.input if item.name == "frames")
    model.graph.input.remove(frames)
    return onnx_runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
