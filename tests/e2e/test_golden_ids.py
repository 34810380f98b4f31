"""Ids of generated clips are those in tests/golden/ids.json; `scripts/_ids.py` has the figures."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vqedge.bundle import open_bundle
from vqedge_runtime.encoders import ENCODERS

ROOT = Path(__file__).parents[2]
A_CLOSE_CALL = 0.01  # of all patches: another CPU may round one choice of k-means the other way


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_ids", ROOT / "scripts/_ids.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_onnxruntime_gives_the_golden_ids(script: ModuleType, bundle: Path) -> None:
    with closing(ENCODERS["onnxruntime"].open(open_bundle(bundle), 1)) as encoder:
        found = script.flips(lambda f, k: encoder.encode(f, k).index_map, script.golden()[:8])
    assert found.ids_differ <= A_CLOSE_CALL, found


@pytest.mark.slow
def test_pytorch_gives_the_golden_ids(script: ModuleType, checkpoint: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = script.flips(script.from_checkpoint(checkpoint), script.golden()[:6])
    assert found.ids_differ <= A_CLOSE_CALL, found


def test_another_clip_has_other_ids(script: ModuleType) -> None:
    wanted = script.golden()
    shifted = iter([*wanted[2:], *wanted[:2]])
    found = script.flips(lambda *_: next(shifted).ids, wanted)
    assert found.clips_same == 0 and found.ids_differ > 0.1 and found.maps_differ > 0.1
    same = iter(wanted)
    perfect = script.flips(lambda *_: next(same).ids, wanted)
    assert (perfect.clips_same, perfect.maps_differ) == (len(wanted), 0.0)
    assert {len(np.unique(item.ids)) for item in wanted if item.budget == 8} <= set(range(2, 9))
