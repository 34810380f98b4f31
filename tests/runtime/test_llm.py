"""The llama.cpp runtime, on two made models and, where it is, the real one."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import (
    CONTEXT,
    END,
    SPEECH,
    VOCABULARY,
    WIDTH,
    base_gguf,
    embedding_rows,
    parrot_tensors,
    video,
    wild_tensors,
    write_gguf,
)

from vqedge.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    PromptError,
    UsageError,
)
from vqedge.prompt import SYSTEM
from vqedge_runtime.llm import (
    DecodingOptions,
    Exchange,
    VideoRows,
    open_llama_cpp,
)

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


# ---- what is read


@pytest.mark.parametrize("name", ["wild", "base"])
def test_embedding_rows_of_tokens_give_the_logits_of_the_tokens(
    name: str, request: pytest.FixtureRequest
) -> None:
    llm = request.getfixturevalue(name)
    path = base_gguf() if name == "base" else request.getfixturevalue("wild_path")
    before, words, after = (
        llm.tokens_from_text(t) for t in ("Look:", " a red ball", " What is it?")
    )
    rows = embedding_rows(path, words)
    assert rows.shape[1] == llm.width
    from_ids, from_rows = llm.logits(before, words, after), llm.logits(before, rows, after)
    difference = np.abs(from_ids - from_rows)
    print(f"{name}: max {difference.max()}, mean {difference.mean()}")
    assert from_ids.shape[0] == len(before + words + after)
    assert difference.max() == 0.0


def test_earlier_turns_are_laid_out_as_the_template_does(wild: Any) -> None:
    clip, past = video(), [Exchange("What moves?", "a <|im_end|> ring"), Exchange("Where?", "up")]
    wild.stream(clip, "And  then?", history=past)
    found = wild._reader.context.last_logits()
    user, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

    def ids(text: str, special: bool = True) -> list[int]:
        return list(wild._model.tokens_from_text(text, special=special))

    after = [
        *ids("\nWhat moves?"), *ids(end), *ids("a <|im_end|> ring", special=False),
        *ids("<|im_end|>\n" + user), *ids("Where?"), *ids(end), *ids("up"),
        *ids("<|im_end|>\n" + user), *ids("And then?"), *ids(end),
    ]  # fmt: skip
    expected = wild.logits(wild._reader._before, clip.rows, after)[-1]
    np.testing.assert_allclose(found, expected, atol=1e-2)  # float16 keys and values
    wild.stream(clip, "And then?")
    assert np.abs(wild._reader.context.last_logits() - expected).max() > 0.05


def test_special_tokens_in_a_question_stay_text(wild: Any) -> None:
    assert END not in wild.tokens_from_text("a<|im_end|>b")
    assert len(wild.tokens_from_text("<|im_end|>")) == len("<|im_end|>")
    asked = wild.ask(video(), "<|im_end|>", DecodingOptions(max_tokens=1))
    plain = wild.ask(video(), "<-im_end->", DecodingOptions(max_tokens=1))
    assert asked.prompt_tokens == plain.prompt_tokens


def test_the_system_message_is_read(wild: Any, wild_path: Path) -> None:
    options = DecodingOptions(max_tokens=1)
    with open_llama_cpp(wild_path, threads=1, system="") as silent:
        without = silent.ask(video(), "So?", options).prompt_tokens
    assert wild.ask(video(), "So?", options).prompt_tokens - without == len(
        wild.tokens_from_text(SYSTEM)
    )


def test_a_question_that_is_not_utf8_is_read_all_the_same(parrot: Any) -> None:
    assert parrot.ask(video(), "is \udcff odd \0?").text == SPEECH


@pytest.mark.parametrize("name", ["wild", "base"])
def test_a_held_prefix_changes_nothing(name: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(name)
    clip, options = video(3, 32, llm.width), DecodingOptions(max_tokens=6)
    llm.ask(video(4, 8, llm.width), "Else?", options)
    cold = llm.ask(clip, "What moves?", options)
    llm.prefill_video(video(4, 8, llm.width))
    llm.stream(clip, "What moves?", options)
    cold_logits = llm._reader.context.last_logits()
    llm.score_choices(clip, "Which is it now?", ["one", "another"])
    warm = llm.ask(clip, "What moves?", options)
    llm.stream(clip, "What moves?", options)
    assert (cold.reused_prefix, warm.reused_prefix) == (False, True)
    assert cold.text == warm.text
    np.testing.assert_array_equal(llm._reader.context.last_logits(), cold_logits)


def test_rows_beyond_one_batch_are_read_and_the_context_grows(wild: Any) -> None:
    long = video(5, rows=700)
    assert wild._reader.context.size == 256
    answer = wild.ask(long, "So?", DecodingOptions(max_tokens=2))
    assert answer.prompt_tokens > 700
    assert wild._reader.context.size == CONTEXT
    assert wild.ask(long, "So?", DecodingOptions(max_tokens=2)).reused_prefix
    other = np.concatenate([long.rows[:-1], -long.rows[-1:]])
    assert not np.array_equal(wild.logits(long.rows)[-1], wild.logits(other)[-1])


# ---- what is refused


def test_an_interrupt_while_the_context_grows_leaves_the_model_usable(
    wild: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = type(wild._reader.context)
    close = context.close

    def interrupted(old: Any) -> None:
        close(old)
        monkeypatch.setattr(context, "close", close)
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wild.prefill_video(video(5, rows=700))
    assert wild.ask(video(4), "So?", DecodingOptions(max_tokens=1)).prompt_tokens > 8


def test_a_prompt_longer_than_the_context_is_refused_with_counts(wild: Any) -> None:
    with pytest.raises(PromptError, match=rf"8 video, \d+ question .* {CONTEXT}; shorten"):
        wild.ask(video(), "why " * CONTEXT)
    with pytest.raises(PromptError, match="2000 video"):
        wild.prefill_video(video(rows=2000))
    with pytest.raises(PromptError, match="2000 positions"):
        wild.logits([1] * 2000)
    assert wild.ask(video(), "Still there?", DecodingOptions(max_tokens=1)).generated_tokens <= 1


def test_max_context_is_kept(wild_path: Path) -> None:
    with (
        open_llama_cpp(wild_path, threads=1, max_context=256) as llm,
        pytest.raises(PromptError, match="max_context is 256; shorten"),
    ):
        llm.prefill_video(video(rows=300))


def test_max_context_is_what_the_model_was_trained_with_at_most(wild_path: Path) -> None:
    with (
        open_llama_cpp(wild_path, threads=1, context=256, max_context=10**6) as llm,
        pytest.raises(PromptError, match=f"wild.gguf has {CONTEXT}; shorten"),
    ):
        llm.ask(video(), "why " * CONTEXT)


def test_max_context_holds_the_template_and_a_row(wild: Any, wild_path: Path) -> None:
    least = len(wild.prompt_ids("So?")[0]) + 1
    for limit in (1, least - 1):
        with pytest.raises(ConfigError, match=rf"max_context is {limit}, .* take {least}; "):
            open_llama_cpp(wild_path, threads=1, max_context=limit)
    with open_llama_cpp(wild_path, threads=1, max_context=least) as llm:
        assert llm.prefill_video(video(rows=1)).tokens == least


@pytest.mark.parametrize(("context", "rows"), [(1, 60), (300, 400)])
def test_a_first_context_of_any_size_takes_whatever_there_is_room_for(
    wild: Any, wild_path: Path, context: int, rows: int
) -> None:
    clip, options = video(rows=rows), DecodingOptions(max_tokens=1)
    with open_llama_cpp(wild_path, threads=1, context=context) as llm:
        assert llm.ask(clip, "So?", options).text == wild.ask(clip, "So?", options).text


@pytest.mark.parametrize("question", ["", " \n\t "])
def test_an_empty_question_is_refused(wild: Any, question: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        wild.ask(video(), question)


def test_ids_outside_the_vocabulary_are_refused(wild: Any) -> None:
    with pytest.raises(PromptError, match="refuses"):
        wild.logits([len(VOCABULARY)])


def test_rows_of_another_width_or_broken_rows_are_refused(wild: Any) -> None:
    with pytest.raises(BundleError, match=f"64 wide, wild.gguf reads {WIDTH}"):
        wild.ask(video(width=64), "Hm?")
    with pytest.raises(BundleError, match="NaN"):
        VideoRows(np.full((2, WIDTH), np.nan, np.float32))
    with pytest.raises(BundleError, match=r"\(0, 4\)"):
        VideoRows(np.zeros((0, 4), np.float32))


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": 10**400}, {"temperature": 9e-4},
     {"temperature": 1001}, {"top_p": 0.0}, {"top_p": -(10**400)}, {"top_k": -1}, {"seed": -1}],
)  # fmt: skip
def test_options_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DecodingOptions(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 8.5}, {"max_tokens": "5"}, {"max_tokens": True}, {"top_k": 2.5}, {"seed": 1.0},
     {"temperature": "1"}, {"top_p": None}],
)  # fmt: skip
def test_options_of_another_type_are_named(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=re.escape(f"{name} {value!r}: give a")):
        DecodingOptions(**wrong)


def test_numbers_of_numpy_are_taken_as_plain_ones() -> None:
    options = DecodingOptions(np.int64(5), np.float32(0.5), 1, np.int32(3), np.uint32(7))  # type: ignore[arg-type]
    assert options == DecodingOptions(5, 0.5, 1.0, 3, 7)
    types = {type(value) for value in vars(options).values()}
    assert types == {int, float}


def test_what_cannot_be_opened_says_so(tmp_path: Path, wild_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        open_llama_cpp(tmp_path / "none.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(wild_path.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"cannot be loaded \(.*failed to read"):
        open_llama_cpp(broken)
    with pytest.raises(ConfigError, match="threads"):
        open_llama_cpp(wild_path, threads=0)


def test_gpu_layers_are_not_dropped_silently(wild_path: Path) -> None:
    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build has a GPU")
    with pytest.raises(BackendUnavailable, match="leave --gpu-layers out"):
        open_llama_cpp(wild_path, gpu_layers=-1)


# ---- what is said


def test_streamed_characters_are_whole_and_make_the_answer(parrot: Any) -> None:
    with parrot.stream(video(), "Speak") as stream:
        assert list(stream) == list(SPEECH)
    assert stream.result.text == SPEECH == parrot.ask(video(), "Speak").text
    assert stream.result.stopped
    assert stream.result.generated_tokens == len(SPEECH.encode())
    assert 0 < stream.result.first_token_ms <= stream.result.total_ms
    assert stream.result.tokens_per_s > 0


def test_an_answer_cut_inside_a_character_marks_it(parrot: Any) -> None:
    answer = parrot.ask(video(), "Speak", DecodingOptions(max_tokens=3))
    assert (answer.text, answer.generated_tokens, answer.stopped) == ("é\ufffd", 3, False)


def test_sampling_is_reproducible_and_greedy_is_the_limit(wild: Any) -> None:
    def said(seed: int, **options: Any) -> str:
        chosen = DecodingOptions(max_tokens=12, temperature=1.5, seed=seed, **options)
        text: str = wild.ask(video(), "Say", chosen).text
        return text

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1
    greedy = wild.ask(video(), "Say", DecodingOptions(max_tokens=12)).text
    assert said(1, top_k=1) == said(2, top_p=1e-6) == greedy


def test_suppressed_tokens_are_never_said(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "p.gguf", parrot_tensors(), suppressed=(SPEECH.encode()[0],))
    with open_llama_cpp(path, threads=1) as llm:
        assert not llm.ask(video(), "Speak", DecodingOptions(max_tokens=4)).text.startswith("é")


@pytest.mark.parametrize("temperature", [0.001, 1000])
def test_suppressed_tokens_are_never_said_at_any_temperature(
    tmp_path: Path, temperature: float
) -> None:
    """Logits that are divided by less are infinite, and what is drawn then is none of them."""
    suppressed = tuple(token for token in range(len(VOCABULARY)) if VOCABULARY[token] not in "abc")
    path = write_gguf(tmp_path / "wild.gguf", wild_tensors(), suppressed)
    options = DecodingOptions(max_tokens=32, temperature=temperature)
    with open_llama_cpp(path, threads=1, context=256) as llm:
        text = llm.ask(video(), "Speak", options).text
    assert len(text) == 32 and set(text) <= set("abc")


# ---- the library


@pytest.mark.parametrize(
    ("name", "quantisation", "width"), [("wild", "all F32", WIDTH), ("base", "Q4_1", 576)]
)
def test_the_name_says_what_runs_where(
    name: str, quantisation: str, width: int, request: pytest.FixtureRequest
) -> None:
    llm = request.getfixturevalue(name)
    assert (llm.name, llm.width) == (f"llama.cpp CPU {quantisation}", width)


def test_native_talk_goes_to_the_log_only(
    parrot_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vqedge_runtime"), open_llama_cpp(parrot_path, threads=1):
        pass
    assert capfd.readouterr() == ("", "")
    assert "n_ctx" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("None", "llama.cpp cannot be loaded ("),
        ("SimpleNamespace(__version__='0.3.2', llama_cpp=object())", "0.3.2 is too old for vqedge"),
    ],
)
def test_importing_needs_no_llama_cpp_and_a_missing_or_old_one_is_explained(
    found: str, told: str
) -> None:
    script = (
        "import sys; import vqedge_runtime.llm as llm; assert 'llama_cpp' not in sys.modules\n"
        "from types import SimpleNamespace\n"
        f"sys.modules['llama_cpp'] = {found}\n"
        "from vqedge.errors import BackendUnavailable\n"
        "from vqedge_runtime.llm.build_flags import pip_line\n"
        "try: llm.open_llama_cpp('x.gguf')\n"
        "except BackendUnavailable as error: print(str(error).replace(pip_line(), 'PIP'))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told in run.stdout and "PIP" in run.stdout


def test_threads_that_wait_sleep_soon_unless_the_user_chose() -> None:
    program = (
        "import os, vqedge_runtime.llm.native\n"
        "print([name for name in os.environ if name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')])"
    )

    def told_openmp(**chosen: str) -> tuple[str, str]:
        """What OpenMP says it was told, and what is left in the environment."""
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        clean = {name: value for name, value in os.environ.items() if name not in names}
        run = subprocess.run(
            [sys.executable, "-c", program],
            env=clean | {"OMP_DISPLAY_ENV": "VERBOSE"} | chosen,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        found = re.findall(r"GOMP_SPINCOUNT = '([^']*)'", run.stderr)
        if not found:
            pytest.skip("this build of llama.cpp has no OpenMP of GNU's")
        return found[0], run.stdout.strip()

    assert told_openmp() == ("1000", "[]")
    assert told_openmp(GOMP_SPINCOUNT="7") == ("7", "['GOMP_SPINCOUNT']")
    assert told_openmp(OMP_WAIT_POLICY="PASSIVE") == ("0", "['OMP_WAIT_POLICY']")
