"""Prompts side by side give what each gives alone, and read what they share once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import CONTEXT, SPEECH, WIDTH, parrot_tensors, video, write_gguf

from vqedge.errors import BackendUnavailable, BundleError, PromptError, StreamEnded
from vqedge_runtime.llm import DecodingOptions, Prompt, VideoRows, open_llama_cpp

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

ROUNDING = 0.02  # of ten log-likelihoods about -7, keys and values being float16
SHORT = DecodingOptions(max_tokens=4)


def clips(count: int) -> list[VideoRows]:
    return [video(seed, rows=5 + seed % 3) for seed in range(count)]


def without(clip: VideoRows, row: int) -> VideoRows:
    return VideoRows(np.delete(clip.rows, row, axis=0))


def alone(llm: Any, prompt: Prompt, answer: str) -> float:
    (total,) = llm.score_choices(prompt.video, prompt.question, [answer]).totals
    return float(total)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("shape", ["one video", "many videos", "rows left out", "mixed"])
def test_scores_are_those_of_each_prompt_alone(wild: Any, shape: str, held: bool) -> None:
    one, several = video(9, rows=20), clips(20)  # 20 are more than one group
    prompts = {
        "one video": [Prompt(one, f"Is it {n}?") for n in range(20)],
        "many videos": [Prompt(clip, "Which is it?") for clip in several],
        "rows left out": [Prompt(without(one, row), "Which?") for row in range(20)],
        "mixed": [Prompt(several[n % 3], f"Is it {n}?") for n in range(20)],
    }[shape]
    expected = [alone(wild, prompt, "it is so") for prompt in prompts]
    wild.prefill_video(one if held else video(33))
    found = wild.score_many(prompts, "it is so")
    assert found == pytest.approx(expected, abs=ROUNDING)
    assert len({round(total, 2) for total in expected}) > 10  # or the order would not matter


def test_answers_are_those_of_each_prompt_alone(parrot: Any) -> None:
    prompts = [Prompt(clip, "Speak" + "!" * n) for n, clip in enumerate(clips(17))]
    found = parrot.ask_many(prompts)
    assert [answer.text for answer in found] == [SPEECH] * 17
    assert all(answer.stopped for answer in found)
    one = [parrot.ask(prompt.video, prompt.question) for prompt in prompts]
    for field in ("prompt_tokens", "generated_tokens"):
        assert [getattr(a, field) for a in found] == [getattr(a, field) for a in one]
    cut = parrot.ask_many(prompts[:2], DecodingOptions(max_tokens=3))
    assert [(a.text, a.stopped) for a in cut] == [("é�", False)] * 2


def test_an_answer_begins_with_its_first_word(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "parrot.gguf", parrot_tensors(" a"))
    with open_llama_cpp(path, threads=1, context=256) as parrot:
        (clip,) = clips(1)
        with parrot.stream(clip, "Speak") as stream:
            assert list(stream) == ["a"]
        assert stream.result.generated_tokens == 2
        assert parrot.ask_many([Prompt(clip, "Speak")])[0].text == "a" == stream.result.text


def test_every_prompt_samples_from_its_own_seed(wild: Any) -> None:
    hot = DecodingOptions(max_tokens=6, temperature=2.0, seed=5)
    prompts = [Prompt(clip, "Say more.") for clip in clips(3)]
    together = [answer.text for answer in wild.ask_many(prompts, hot)]
    assert together == [wild.ask(p.video, p.question, hot).text for p in prompts]
    assert len(set(together)) > 1


def test_what_is_shared_is_read_once(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context_type, read = type(wild._reader.context), []
    decode = context_type._decode

    def counting(context: Any, cells: Any) -> None:
        read.append((cells.is_rows, len(cells)))
        decode(context, cells)

    one = video(9, rows=20)
    left_out = [Prompt(without(one, row), "Is it?") for row in range(20)]
    wild.score_many(left_out, "so")  # the context grows, then stays
    wild.prefill_video(one)
    monkeypatch.setattr(context_type, "_decode", counting)

    def rows_read(prompts: list[Prompt]) -> int:
        read.clear()
        wild.score_many(prompts, "so")
        return sum(count for is_rows, count in read if is_rows)

    assert rows_read([Prompt(one, "Is it?"), Prompt(one, "Was it?")]) == 0
    assert rows_read(left_out) == 20 * 19 // 2
    other = video(4, rows=7)
    assert rows_read([Prompt(other, "Is it?"), Prompt(one, "So?"), Prompt(other, "Then?")]) == 7


def test_one_video_is_read_for_the_first_of_its_questions(wild: Any) -> None:
    prompts = [Prompt(video(9, rows=200), f"Is it {n}?") for n in range(3)]
    cold, held = wild.ask_many(prompts, SHORT), wild.ask_many(prompts, SHORT)
    assert [answer.reused_prefix for answer in cold] == [False, True, True]
    assert [answer.reused_prefix for answer in held] == [True] * 3


def test_the_video_held_before_is_held_afterwards(wild: Any) -> None:
    one = video(9)
    wild.prefill_video(one)
    wild.ask_many([Prompt(clip, "Which?") for clip in clips(4)], SHORT)
    assert wild.ask(one, "Still?", SHORT).reused_prefix
    wild.ask_many([Prompt(clips(4)[3], "Which?")] * 2, SHORT)
    assert wild.ask(clips(4)[3], "Still?", SHORT).reused_prefix


def test_long_videos_go_in_groups_that_fit(wild: Any) -> None:
    long = [video(seed, rows=400) for seed in range(4)]
    prompts = [Prompt(clip, "Which?") for clip in long]
    expected = [alone(wild, prompt, "this") for prompt in prompts]
    assert wild.score_many(prompts, "this") == pytest.approx(expected, abs=ROUNDING)
    nearly_all = Prompt(video(7, rows=CONTEXT - 100), "Which?")
    wild.prefill_video(long[0])
    found = wild.score_many([nearly_all], "this")
    assert found == pytest.approx([alone(wild, nearly_all, "this")], abs=ROUNDING)


def test_what_is_refused_leaves_the_model_usable(wild: Any) -> None:
    clip = video(9)
    assert wild.ask_many([]) == []
    with pytest.raises(PromptError, match="empty"):
        wild.ask_many([Prompt(clip, "Which?"), Prompt(clip, " ")])
    with pytest.raises(PromptError, match="word"):
        wild.score_many([Prompt(clip, "Which?")], " ")
    with pytest.raises(PromptError, match=f"has {CONTEXT}"):
        wild.ask_many([Prompt(clip, "why " * CONTEXT), Prompt(clip, "Which?")])
    with pytest.raises(BundleError, match=f"reads {WIDTH}"):
        wild.ask_many([Prompt(video(width=64), "Which?")])
    assert len(wild.ask_many([Prompt(clip, "Still there?")], SHORT)) == 1
    wild.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        wild.ask_many([Prompt(clip, "Still there?")])


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Prompt(video(9), " "), PromptError),
        (Prompt(video(9), "why " * CONTEXT), PromptError),
        (Prompt(video(9, rows=CONTEXT), "Which?"), PromptError),
        (Prompt(video(width=64), "Which?"), BundleError),
    ],
)
def test_what_the_last_prompt_cannot_be_asked_is_told_before_any_is_read(
    wild: Any, monkeypatch: pytest.MonkeyPatch, bad: Prompt, error: type[Exception]
) -> None:
    prompts = [*(Prompt(clip, "Which?") for clip in clips(20)), bad]  # 20 are more than one group
    monkeypatch.setattr(type(wild._reader.context), "_decode", lambda *_: pytest.fail("it read"))
    for ask in (lambda: wild.ask_many(prompts), lambda: wild.score_many(prompts, "so")):
        with pytest.raises(error):
            ask()


def test_a_stream_is_ended_by_newer_prompts(wild: Any) -> None:
    clip = video(9)
    stream = wild.stream(clip, "Say more.", SHORT)
    next(stream)
    wild.ask_many([Prompt(clip, "Which?")], SHORT)
    with pytest.raises(StreamEnded, match="another call"):
        list(stream)


@pytest.mark.parametrize(
    "read",
    [
        lambda wild, clip: wild.ask(clip, " "),
        lambda wild, clip: wild.ask(clip, "why " * CONTEXT),
        lambda wild, clip: wild.ask(clip, "Which?", DecodingOptions(max_tokens=9999)),
        lambda wild, clip: wild.stream(video(width=64), "Which?"),
        lambda wild, clip: wild.score_choices(clip, "", ["red", "blue"]),
        lambda wild, clip: wild.ask_many([Prompt(clip, "Which?"), Prompt(clip, "")]),
        lambda wild, clip: wild.ask_many([]),
        lambda wild, clip: wild.score_many([Prompt(clip, "Which?")], " "),
        lambda wild, clip: wild.score_many([Prompt(clip, "")], "red"),
        lambda wild, clip: wild.prefill_video(video(width=64)),
        lambda wild, clip: wild.prefill_video(video(9, rows=CONTEXT)),
        lambda wild, clip: wild.restore_prefix(video(9, rows=CONTEXT), b""),
    ],
)
def test_what_reads_nothing_ends_no_stream(wild: Any, read: Callable[[Any, Any], object]) -> None:
    clip, options = video(9), DecodingOptions(max_tokens=8)
    expected = wild.ask(clip, "Say more.", options).text
    stream = wild.stream(clip, "Say more.", options)
    first = next(stream)
    with suppress(PromptError, BundleError):
        assert read(wild, clip) == []
    assert first + "".join(stream) == expected
