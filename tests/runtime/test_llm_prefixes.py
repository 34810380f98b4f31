"""Prefixes set aside: which are let go, and that one put back gives what a fresh one gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import asking_facts, tiny_facts, write_bundle
from tiny_gguf import base_gguf, video

from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.llm import (
    DecodingOptions,
    Exchange,
    FakeLanguageModel,
    Prompt,
    open_llama_cpp,
)
from vqedge_runtime.llm.prefixes import MOST_BYTES, Prefixes

SHORT = DecodingOptions(max_tokens=6)


@pytest.fixture
def base() -> Iterator[Any]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    with open_llama_cpp(base_gguf(), context=256) as llm:
        yield llm


def rows_read(monkeypatch: pytest.MonkeyPatch, llm: Any) -> list[int]:
    """Grows by the rows of every native call that reads some."""
    context_type, read = type(llm._reader.context), []
    decode = context_type._decode

    def counting(context: Any, cells: Any) -> None:
        if cells.is_rows:
            read.append(len(cells))
        decode(context, cells)

    monkeypatch.setattr(context_type, "_decode", counting)
    return read


# ---- which are kept


def names(kept: Prefixes) -> list[Any]:
    return list(kept._states)


def test_those_kept_longest_are_let_go_first() -> None:
    kept = Prefixes(most_bytes=30)
    for name in "abc":
        kept.keep(name, name.encode() * 10)
    kept.keep("a", kept.take("a") or b"")
    kept.keep("d", b"d" * 10)
    assert names(kept) == ["c", "a", "d"]
    kept.keep("e", b"e" * 15)
    assert names(kept) == ["d", "e"]
    assert (kept.take("e"), kept.take("e"), kept.size_bytes) == (b"e" * 15, None, 10)


def test_one_that_is_too_large_costs_no_other_its_place() -> None:
    kept = Prefixes(most_bytes=30)
    kept.keep("a", b"a" * 10)
    kept.keep("b", b"b" * 31)
    assert (names(kept), kept.size_bytes) == (["a"], 10)
    kept.keep("a", b"a" * 31)
    assert (names(kept), kept.size_bytes) == ([], 0)


def test_a_name_is_kept_once() -> None:
    kept = Prefixes(most_bytes=30)
    kept.keep("a", b"a" * 20)
    kept.keep("a", b"b" * 20)
    assert (kept.size_bytes, kept.take("a")) == (20, b"b" * 20)
    kept.keep("a", b"a")
    kept.clear()
    assert (names(kept), kept.size_bytes) == ([], 0)


# ---- what the language model makes of them


@pytest.mark.parametrize("name", ["wild", "base"])
def test_a_prefix_put_back_changes_nothing(name: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(name)
    clip, other = video(3, 32, llm.width), video(4, 8, llm.width)
    cold = llm.ask(clip, "What moves?", SHORT)
    llm.forget()
    llm.stream(clip, "What moves?", SHORT)
    cold_logits = llm._reader.context.last_logits()
    llm.ask(clip, "And what else?", SHORT)
    assert not llm.ask(other, "What moves?", SHORT).reused_prefix
    back = llm.ask(clip, "What moves?", SHORT)
    assert back.reused_prefix and (back.text, back.prompt_tokens) == (cold.text, cold.prompt_tokens)
    assert llm.prefill_video(other).reused
    llm.stream(clip, "What moves?", SHORT)
    np.testing.assert_array_equal(llm._reader.context.last_logits(), cold_logits)


def test_clips_in_turns_are_read_once_each(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [video(seed, rows=5 + seed) for seed in range(4)]
    read = rows_read(monkeypatch, wild)
    wild.ask_many([Prompt(clips[0], "Which?")] * 2, SHORT)
    for _ in range(2):
        for clip in clips:
            wild.stream(clip, "Then?", SHORT, [Exchange("So?", "yes")])
            wild.score_choices(clip, "Which?", ["one", "two"])
    assert read == [5, 6, 7, 8]
    wild.forget()
    assert not wild.prefill_video(clips[1]).reused and not wild.prefill_video(clips[0]).reused
    assert read == [5, 6, 7, 8, 6, 5]


def test_what_takes_the_whole_context_leaves_prefixes_aside(wild: Any) -> None:
    clip, long = video(3), video(4, rows=700)
    expected = wild.ask(clip, "Then?", SHORT).text
    assert wild._reader.context.size == 256
    wild.prefill_video(long)
    assert wild._reader.context.size > 256, "a larger context was made"
    wild.logits([1, 2, 3])
    assert wild.prefill_video(long).reused
    back = wild.ask(clip, "Then?", SHORT)
    assert (back.text, back.reused_prefix) == (expected, True)


def test_no_more_bytes_are_kept_than_there_is_room_for(wild: Any) -> None:
    clips = [video(seed, rows=20) for seed in range(4)]
    size = len(wild.prefix_state(clips[0]))
    wild._reader._aside.most_bytes = 2 * size
    for clip in clips:
        wild.prefill_video(clip)
    assert wild._reader._aside.size_bytes == 2 * size
    assert [wild.prefill_video(clip).reused for clip in clips[::-1]] == [True, True, True, False]
    wild.forget()
    wild._reader._aside.most_bytes = size - 1
    assert [wild.prefill_video(clip).reused for clip in clips[:2] * 2] == [False] * 4


def test_none_is_copied_where_none_is_to_be_kept(
    wild_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_llama_cpp(wild_path, threads=1, context=256, most_aside_bytes=0) as llm:
        monkeypatch.setattr(llm._reader.context, "state", lambda: pytest.fail("copied"))
        assert [llm.prefill_video(video(seed)).reused for seed in (3, 4, 4, 3)] == [
            False,
            False,
            True,
            False,
        ]


def test_a_session_keeps_prefixes_where_the_same_rows_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def opens(_: Path, *, most_aside_bytes: int, **__: Any) -> FakeLanguageModel:
        told.append(most_aside_bytes)
        return FakeLanguageModel()

    monkeypatch.setattr("vqedge_runtime.session.open_bridge", lambda *_: FakeBridge(576))
    monkeypatch.setattr("vqedge_runtime.session.open_llama_cpp", opens)
    for name, facts in {"plain": tiny_facts(), "asking": asking_facts()}.items():
        VideoQA.open(write_bundle(tmp_path / f"{name}.vqedge", facts=facts).root).close()
    assert told == [MOST_BYTES, 0]


def test_a_prefix_restored_from_a_file_is_in_memory_once(wild: Any) -> None:
    clip, other = video(3), video(4)
    state = wild.prefix_state(clip)
    wild.prefill_video(other)
    aside = wild._reader._aside
    assert not wild.restore_prefix(clip, state[:-4]) and len(names(aside)) == 2
    assert wild.restore_prefix(clip, state)
    assert names(aside) == [other.key]


def test_a_state_that_is_not_taken_is_read_instead(wild: Any) -> None:
    clip, other = video(3, rows=20), video(4)
    expected = wild.ask(clip, "Then?", SHORT).text
    wild.prefill_video(other)
    aside = wild._reader._aside
    (name,) = names(aside)
    aside.keep(name, aside.take(name)[:-4])
    answer = wild.ask(clip, "Then?", SHORT)
    assert (answer.text, answer.reused_prefix) == (expected, False)
    wild.prefill_video(other)
    assert wild.ask(clip, "Then?", SHORT).reused_prefix
