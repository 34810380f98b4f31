"""`.kv` files: a prefix that a later session takes instead of reading the video."""

from __future__ import annotations

import hashlib
import hmac
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import write_bundle
from tiny_gguf import WIDTH, video

from vqedge.bundle import Manifest
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.kv import kv_path, read_kv, write_kv
from vqedge_runtime.llm import DecodingOptions

pytestmark = pytest.mark.usefixtures("own_cache")
STATE, SHORT = bytes(range(200)), DecodingOptions(max_tokens=6)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = kv_path(tmp_path / "clip.vqt")
    assert path.name == "clip.kv" and read_kv(path, b"who") is None
    assert write_kv(path, b"who", STATE)
    assert read_kv(path, b"who") == STATE
    assert (tmp_path / "cache" / "kv.secret").stat().st_mode & 0o077 == 0
    assert {item.name for item in tmp_path.iterdir()} == {"clip.kv", "cache"}


def test_what_a_killed_one_left_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".vqedge-0123.tmp"
    left.write_bytes(STATE)
    os.utime(left, (0, 0))
    assert write_kv(tmp_path / "clip.kv", b"who", STATE)
    assert not left.exists()


def test_what_lies_on_the_disk(tmp_path: Path) -> None:
    write_kv(tmp_path / "clip.kv", b"who", STATE)
    secret = (tmp_path / "cache" / "kv.secret").read_bytes()
    mac = hmac.digest(secret, hashlib.sha256(b"who").digest() + STATE, "sha256")
    assert (tmp_path / "clip.kv").read_bytes() == b"VQEDGEKV\x01" + mac + STATE


def test_a_state_is_held_once_and_another_programs_file_not_at_all(tmp_path: Path) -> None:
    path, other, state = tmp_path / "clip.kv", tmp_path / "other.kv", bytes(8 << 20)
    other.write_bytes(state)
    tracemalloc.start()
    try:
        assert read_kv(other, b"who") is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        assert write_kv(path, b"who", state)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        assert read_kv(path, b"who") == state
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()


def test_another_identity_or_another_users_file_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.kv"
    write_kv(path, b"who", STATE)
    assert read_kv(path, b"somebody else") is None
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "other"))
    assert read_kv(path, b"who") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 9 + 32 + len(STATE) - 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_is_stale(tmp_path: Path, place: int, bit: int, cut: bool) -> None:
    path = tmp_path / "clip.kv"
    path.unlink(missing_ok=True)
    write_kv(path, b"who", STATE)
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data[:place] if cut else data)
    assert read_kv(path, b"who") is None


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "main.kv"
    path.write_text("Button:\n    text: 'Kivy'\n")
    assert not write_kv(path, b"who", STATE)
    assert path.read_text().startswith("Button")


def test_where_nothing_can_be_written_nothing_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not write_kv(tmp_path / "no" / "such" / "folder.kv", b"who", STATE)
    [record] = caplog.records
    assert "folder.kv: cannot be written, or is another program's" in record.getMessage()


def test_where_no_secret_can_be_kept_the_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "file"))
    assert not write_kv(tmp_path / "clip.kv", b"who", STATE)
    [record] = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING" and "VQEDGE_CACHE" in message
    assert message.startswith(f"{tmp_path}/file: cannot be written") and "clip.kv" not in message


def test_where_nobody_knows_the_cache_there_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    assert write_kv(tmp_path / "clip.kv", b"who", STATE)
    monkeypatch.delenv("VQEDGE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert read_kv(tmp_path / "clip.kv", b"who") is None
    assert not write_kv(tmp_path / "other.kv", b"who", STATE)
    assert "vqedge: cannot be written, so that no .kv can be signed" in caplog.text


@pytest.mark.parametrize("left", [b"", b"half"])
def test_a_secret_whose_writing_was_cut_is_made_anew(tmp_path: Path, left: bytes) -> None:
    secret, path = tmp_path / "cache/kv.secret", tmp_path / "clip.kv"
    secret.parent.mkdir()
    secret.write_bytes(left)
    assert write_kv(path, b"who", STATE)
    assert read_kv(path, b"who") == STATE
    assert secret.stat().st_mode & 0o077 == 0


def test_a_restored_prefix_gives_the_logits_of_a_read_one(wild: Any) -> None:
    clip = video(3, rows=20)
    wild.stream(clip, "What moves?", SHORT)
    expected = wild._reader.context.last_logits()
    state = wild.prefix_state(clip)
    wild.prefill_video(video(4))
    assert wild.restore_prefix(clip, state)
    stream = wild.stream(clip, "What moves?", SHORT)
    assert stream.result.reused_prefix
    np.testing.assert_array_equal(wild._reader.context.last_logits(), expected)


def test_a_state_that_does_not_fit_is_not_taken(wild: Any) -> None:
    clip = video(3, rows=20)
    state = wild.prefix_state(clip)
    expected = wild.ask(clip, "What moves?", SHORT).text
    wild.forget()
    assert not wild.restore_prefix(video(5, rows=21), state)
    assert not wild.restore_prefix(clip, state[:-4])
    answer = wild.ask(clip, "What moves?", SHORT)
    assert (answer.text, answer.reused_prefix) == (expected, False)


def test_a_file_of_another_clip_model_or_build_is_not_taken(
    wild: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is as long: llama.cpp takes it, and would answer about what it does not see."""
    manifest, path = write_bundle(tmp_path / "a.vqedge").manifest, tmp_path / "clip.kv"
    models = FakeEncoder(8, WIDTH), FakeBridge(WIDTH), wild
    qa = VideoQA(*models, manifest)
    shape = (8, 224, 224, 3)
    clip, other = (qa.encode_frames(np.full(shape, grey, np.uint8)) for grey in (90, 190))
    assert clip.tokens.rows.shape == other.tokens.rows.shape

    def reused(qa: VideoQA) -> bool:
        wild.forget()
        return qa.prefill(clip, path).reused

    assert [reused(qa), reused(qa)] == [False, True]
    qa.prefill(other, path)
    assert not reused(qa)
    files = [f.model_copy(update={"sha256": "ab" * 32}) for f in manifest.files]
    others = [f if f.role == "llm" else kept for f, kept in zip(files, manifest.files, strict=True)]
    later = VideoQA(*models, Manifest.sealed(manifest, tuple(others)))
    assert [reused(later), reused(later)] == [False, True]
    monkeypatch.setattr("vqedge_runtime.llm.generate.system_info", lambda: "another processor")
    assert [reused(later), reused(later)] == [False, True]
