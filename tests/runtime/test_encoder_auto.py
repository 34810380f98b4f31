"""The fastest backend is measured once, chosen, remembered and announced."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import tiny_facts

from vqedge.bundle import Bundle, bundle_writer
from vqedge.errors import BackendUnavailable
from vqedge_runtime.bench import side_by_side
from vqedge_runtime.encoders import (
    ENCODERS,
    EncoderBackend,
    auto,
    open_encoder,
    opener_ahead,
    providers,
)
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Missing
from vqedge_runtime.tokens import TokenSet


class Timed(FakeEncoder):
    """A fake that takes its time, by a clock of its own, and counts how often it was opened."""

    now_s = 0.0

    def __init__(self, label: str, seconds: float, opened: list[str]) -> None:
        super().__init__()
        self.label, self.seconds = label, seconds
        opened.append(label)

    @property
    def name(self) -> str:
        return self.label

    def encode(self, frames_thwc: np.ndarray, budget: int, text: Any = None) -> TokenSet:
        Timed.now_s += self.seconds
        return super().encode(frames_thwc, budget)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three backends, the second fastest, the third broken; what was opened."""
    opened: list[str] = []

    def broken(*_: Any) -> Any:
        raise BackendUnavailable("no driver")

    def timed(label: str, seconds: float) -> Any:
        return lambda *_: Timed(label, seconds, opened)

    monkeypatch.setattr(auto.time, "perf_counter", lambda: Timed.now_s)
    rows = {"onnxruntime": timed("slow", 0.3), "openvino": timed("quick", 0.1)}
    for name, opens in (rows | {"onnxruntime-cuda": broken}).items():
        monkeypatch.setitem(ENCODERS, name, EncoderBackend(opens, lambda: None))
    return opened


def test_the_fastest_is_measured_once_chosen_and_announced(
    bundle: Bundle,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    encoder = open_encoder("auto", bundle)
    assert encoder.name == "quick (auto: fastest of 2 here)"
    assert "measuring onnxruntime, openvino on this machine, once" in caplog.text
    assert sorted(opened) == ["quick", "quick", "slow"]
    opened.clear()
    caplog.clear()
    assert open_encoder("auto", bundle).name == encoder.name
    assert opened == ["quick"] and not caplog.text


def test_nothing_is_opened_ahead_that_is_to_be_measured_or_may_take_long(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    assert opener_ahead("auto", bundle) is None and opened == []
    open_encoder("auto", bundle)
    opened.clear()
    ahead = opener_ahead("auto", bundle)
    assert ahead is not None and opened == []
    found = ahead()
    assert found is not None and found.name == "quick (auto: fastest of 2 here)"
    assert opened == ["quick"]
    broken = EncoderBackend(lambda *_: Timed("never", 0.0, opened), lambda: None, auto=False)
    monkeypatch.setitem(ENCODERS, "onnxruntime-tensorrt", broken)
    assert opener_ahead("onnxruntime-tensorrt", bundle) is None


def test_where_none_opens_that_was_measured_nothing_is_measured_ahead(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    open_encoder("auto", bundle)
    tried: list[str] = []

    def gone(*_: Any) -> Any:
        tried.append("gone")
        raise BackendUnavailable("it is gone")

    for name in auto.CANDIDATES:
        monkeypatch.setitem(ENCODERS, name, EncoderBackend(gone, lambda: None))
    ahead = opener_ahead("auto", bundle)
    assert ahead is not None and ahead() is None
    assert tried == ["gone", "gone"], "each once"


def test_of_those_that_start_together_one_measures(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    start = threading.Barrier(3)

    def begin() -> str:
        start.wait()
        return open_encoder("auto", bundle).name

    with ThreadPoolExecutor(3) as pool:
        names = [found.result() for found in [pool.submit(begin) for _ in range(3)]]
    assert names == ["quick (auto: fastest of 2 here)"] * 3
    assert sorted(opened) == [*["quick"] * 4, "slow"]


def test_a_failure_that_another_has_just_met_is_not_tried_at_the_same_start(
    bundle: Bundle, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    files = auto.candidates(bundle)
    before = auto._remembered(bundle, None, files)
    open_encoder("auto", bundle)
    caplog.clear()
    assert auto._measured_alone(bundle, None, files, before).failed == {"onnxruntime-cuda": 1}
    assert not caplog.text


def test_a_backend_that_fails_is_tried_at_two_more_starts(
    bundle: Bundle, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        name = open_encoder("auto", bundle).name
        assert name == "quick (auto: fastest of 3 here; onnxruntime-cuda failed when measured)"
    assert "measuring onnxruntime, onnxruntime-cuda, openvino on this machine, once" in caplog.text
    assert caplog.text.count("on this machine, again") == 2
    assert caplog.text.count("onnxruntime-cuda does not run: no driver") == 3


def test_a_gpu_that_was_taken_is_chosen_when_it_is_free(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_encoder("auto", bundle)
    free = EncoderBackend(lambda *_: Timed("gpu", 0.0, opened), lambda: None)
    monkeypatch.setitem(ENCODERS, "onnxruntime-cuda", free)
    assert open_encoder("auto", bundle).name == "gpu (auto: fastest of 3 here)"
    opened.clear()
    open_encoder("auto", bundle)
    assert opened == ["gpu"]


@pytest.mark.parametrize("error", [BackendUnavailable("no driver"), ImportError("libcudart")])
def test_where_the_fastest_does_not_open_the_next_one_is_taken_for_now(
    bundle: Bundle,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    open_encoder("auto", bundle)
    with monkeypatch.context() as later:
        later.setitem(ENCODERS, "openvino", EncoderBackend(broken, lambda: None))
        opened.clear()
        name = open_encoder("auto", bundle).name
        assert name == "slow (auto: fastest of 2 here; openvino does not open)"
        assert opened == ["slow"] and f"openvino does not open: {error}" in caplog.text
        later.setitem(ENCODERS, "onnxruntime", EncoderBackend(broken, lambda: None))
        with pytest.raises(BackendUnavailable, match="no encoder backend runs here; openvino: "):
            open_encoder("auto", bundle)
    opened.clear()
    assert open_encoder("auto", bundle).name == "quick (auto: fastest of 2 here)"
    assert opened == ["quick"], "as it was remembered"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    open_encoder("auto", bundle)
    assert "slow" in opened, "another GPU may be faster"


@pytest.mark.parametrize("time_ms", ["NaN", "-1", "true", "Infinity"])
def test_a_time_that_cannot_be_is_measured_again(
    bundle: Bundle,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    time_ms: str,
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime", "openvino"))
    open_encoder("auto", bundle)
    opened.clear()
    file = tmp_path / "cache" / "backends.json"
    file.write_text(re.sub(r'("onnxruntime": )[\d.]+', rf"\g<1>{time_ms}", file.read_text()))
    assert time_ms in file.read_text()
    open_encoder("auto", bundle)
    assert sorted(opened) == ["quick", "quick", "slow"]


def test_a_large_model_is_measured_by_one_clip(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    monkeypatch.setattr(Timed, "encode", lambda _, frames, budget, text: encoded.append(budget))
    monkeypatch.setattr(auto, "_MOST_S", 0.0)
    monkeypatch.setattr(auto.time, "perf_counter", iter(range(100)).__next__)
    monkeypatch.setattr(auto, "_MOST_S", 1.0)
    assert auto.clip_ms_of("onnxruntime", bundle, None) == 1e3
    assert len(encoded) == 1


def test_a_first_clip_that_compiles_is_not_taken_for_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiles(FakeEncoder):
        def encode(self, *args: Any) -> Any:
            now[0] += 30.0 if now[0] == 0.0 else 0.5
            return super().encode(*args)

    now = [0.0]
    monkeypatch.setattr(auto.time, "perf_counter", lambda: now[0])
    row = EncoderBackend(lambda *_: Compiles(), lambda: None, slow_start=True)
    monkeypatch.setitem(ENCODERS, "tensorrt-rtx", row)
    assert auto.clip_ms_of("tensorrt-rtx", bundle, None) == 500.0
    assert now == [32.0], "and clips of half a second are measured for two"


@pytest.mark.parametrize("change", ["threads", "versions", "driver", "bundle", "damage"])
def test_another_machine_or_bundle_or_a_damaged_file_is_measured_again(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    open_encoder("auto", bundle, 1)
    opened.clear()
    threads = 1
    if change == "threads":
        threads = 2
    elif change == "versions":
        monkeypatch.setattr(providers, "version", lambda _: "99")
    elif change == "driver":
        monkeypatch.setattr(auto, "installed_driver", lambda: (99, 0))
    elif change == "bundle":
        with bundle_writer(tmp_path / "b.vqedge") as draft:
            for name in ("encoder.onnx", "bridge.onnx", "llm.gguf"):
                (draft.folder / name).write_bytes(b"another")
            bundle = draft.finish(tiny_facts())
    else:
        (tmp_path / "cache" / "backends.json").write_text('{"machines": 3}')
    open_encoder("auto", bundle, threads)
    assert "slow" in opened


def test_one_candidate_is_taken_without_measuring(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime",))
    assert open_encoder("auto", bundle).name == "slow (auto: the only one here)"
    assert opened == ["slow"]


def test_a_cache_that_cannot_be_written_costs_time_only_and_is_told(
    bundle: Bundle,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "file" / "below"))
    assert open_encoder("auto", bundle).name.startswith("quick")
    told = [record for record in caplog.records if "VQEDGE_CACHE" in record.getMessage()]
    assert len(told) == 1 and told[0].levelname == "WARNING"
    assert told[0].getMessage().startswith(f"{tmp_path}/file/below: cannot be written")


def test_nothing_that_runs_is_an_error_with_the_reasons(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = EncoderBackend(lambda *_: pytest.fail("opened"), lambda: Missing("gone", "install"))
    for name in auto.CANDIDATES:
        monkeypatch.setitem(ENCODERS, name, gone)
    with pytest.raises(BackendUnavailable, match="vqedge doctor"):
        open_encoder("auto", bundle)


def test_nothing_that_can_run_the_bundle_is_an_error_with_a_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> FakeEncoder:
        raise BackendUnavailable("exported with --plugin-node")

    for name in auto.CANDIDATES:
        monkeypatch.setitem(ENCODERS, name, EncoderBackend(refuses, lambda: None))
    with pytest.raises(BackendUnavailable, match=r"runs here; .*: exported with --plugin-node"):
        open_encoder("auto", bundle)
    frames = np.zeros((8, 224, 224, 3), np.uint8)
    rows = side_by_side(bundle, frames, 1)
    assert {row["error"] for row in rows.values()} == {"exported with --plugin-node"}


def test_backends_are_timed_without_a_share_where_the_reference_does_not_run(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> FakeEncoder:
        raise BackendUnavailable("not here")

    monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(refuses, lambda: None))
    rows = side_by_side(bundle, np.zeros((8, 224, 224, 3), np.uint8), 1)
    assert rows["onnxruntime"] == {"error": "not here"}
    assert rows["openvino"]["encode_ms"] >= 0 and "over_fp32" not in rows["openvino"]


def test_so_does_one_of_which_nobody_knows_where_it_is(
    bundle: Bundle,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("VQEDGE_CACHE", "~no-such-user/cache")
    assert open_encoder("auto", bundle).name.startswith("quick")
    told = "~no-such-user/cache: cannot be written, so that every start measures again; "
    assert told in caplog.text
