"""How long things of llama.cpp live: streams, turns of threads, memory, processes."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from own_memory import anonymous_mb
from tiny_gguf import SPEECH, WIDTH, video

from vqedge.errors import BackendUnavailable, StreamEnded
from vqedge_runtime.llm import DecodingOptions, Prompt, open_llama_cpp

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def test_a_stream_may_be_left(parrot: Any) -> None:
    left = parrot.stream(video(), "Speak")
    assert next(left) == "é"
    left.close()
    left.close()
    assert list(left) == []
    assert left.result.text == "é"


def test_a_stream_is_ended_by_whatever_is_called_next(parrot: Any) -> None:
    for call in (
        lambda: parrot.stream(video(), "Speak"),
        lambda: parrot.ask(video(), "Speak"),
        lambda: parrot.ask_many([Prompt(video(), "Speak")]),
        lambda: parrot.score_choices(video(), "Speak", ["a"]),
        lambda: parrot.score_many([Prompt(video(), "Speak")], "a"),
        lambda: parrot.prefill_video(video()),
        lambda: parrot.logits([1]),
        lambda: parrot.forget(),
    ):
        older = parrot.stream(video(), "Speak")
        assert next(older) == "é"
        call()
        with pytest.raises(StreamEnded, match="another call"):
            next(older)
    assert parrot.ask(video(), "Speak").text == SPEECH


def test_threads_take_turns(parrot: Any) -> None:
    said: list[str] = []

    def ask(seed: int) -> None:
        said.extend(parrot.ask(video(seed % 2), "Speak").text for _ in range(5))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [SPEECH] * 20


def test_closing_twice_is_fine_and_use_afterwards_is_named(parrot_path: Path) -> None:
    llm = open_llama_cpp(parrot_path, threads=1)
    stream = llm.stream(video(), "Speak")
    llm.close()
    llm.close()
    for use in (
        lambda: next(stream),
        lambda: llm.ask(video(), "Speak"),
        lambda: llm.prefill_video(video()),
        lambda: llm.score_choices(video(), "Speak", ["a"]),
        lambda: llm.logits([1]),
    ):
        with pytest.raises(BackendUnavailable, match="closed"):
            use()


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the kind of every model and context whose memory is freed."""
    from vqedge_runtime.llm.handles import Context, Model

    kinds: list[str] = []

    def watch(kind: type[Context] | type[Model]) -> None:
        free = kind._free

        def told(self: Any, pointer: Any) -> None:
            kinds.append(kind.__name__)
            free(self, pointer)

        monkeypatch.setattr(kind, "_free", told)

    watch(Context)
    watch(Model)
    return kinds


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("at", ["loaded meta data", "constructing llama_context"])
def test_an_interrupt_while_llama_cpp_opens_a_model_ends_it(
    parrot_path: Path, freed: list[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Python hears it in the callback of the log, from which nothing can be raised."""
    from vqedge_runtime.llm import native

    native.backend()
    heard = []

    def debug(_form: str, line: str) -> None:
        if at in line and not heard:
            heard.append(line)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(native._log, "debug", debug)
    with pytest.raises(KeyboardInterrupt):
        open_llama_cpp(parrot_path, threads=1, context=256)
    gc.collect()
    assert heard and freed[-1:] == ["Model"]
    with open_llama_cpp(parrot_path, threads=1, context=256) as llm:
        assert llm.ask(video(), "Speak").text == SPEECH


def test_a_model_in_a_cycle_is_freed_after_its_context(parrot_path: Path, freed: list[str]) -> None:
    llm = open_llama_cpp(parrot_path, threads=1, context=256)
    llm.__dict__["itself"] = llm
    del llm
    gc.collect()
    assert freed == ["Context", "Model"]


def test_a_model_that_fails_at_its_template_is_freed_after_its_context(
    parrot_path: Path, freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqedge_runtime.llm.handles import Context

    def fail(*_: object) -> None:
        raise BackendUnavailable("made to fail")

    monkeypatch.setattr(Context, "read", fail)
    with pytest.raises(BackendUnavailable, match="made to fail") as caught:
        open_llama_cpp(parrot_path, threads=1, context=256)
    del caught
    gc.collect()
    assert freed == ["Context", "Model"]


def test_hundreds_of_questions_do_not_grow_the_process(wild_path: Path) -> None:
    def put(number: int) -> None:
        llm.ask(clips[number % 2], f"Question {number}?", options)
        llm.stream(clips[0], "Left", options)
        llm.score_choices(clips[0], "Which?", ["a", "b c"])
        if number % 10 == 0:
            open_llama_cpp(wild_path, threads=1, context=256).close()

    options = DecodingOptions(max_tokens=3, temperature=1.0)
    clips = [video(seed, rows=64) for seed in range(2)]
    with open_llama_cpp(wild_path, threads=1, context=256) as llm:
        for number in range(50):
            put(number)
        before = anonymous_mb()
        for number in range(200):
            put(number)
        grown = anonymous_mb() - before
    print(f"grown by {grown:.2f} MB")
    assert grown < 4


def test_threads_that_start_llama_cpp_together_start_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on calling the log that it was given last, so there must be no other."""
    from vqedge_runtime.llm import native

    library = Mock(llama_backend_init=lambda: time.sleep(0.1))
    monkeypatch.setattr(native, "lib", library)
    monkeypatch.setattr(native, "_started", functools.cache(native._started.__wrapped__))
    with ThreadPoolExecutor(4) as pool:
        logs = {started.result() for started in [pool.submit(native.backend) for _ in range(4)]}
    assert len(logs) == library.llama_log_callback.call_count == 1


def test_a_model_left_open_ends_with_the_process_in_silence(parrot_path: Path) -> None:
    script = (
        "import sys, numpy as np; from vqedge_runtime.llm import VideoRows, open_llama_cpp\n"
        "llm = open_llama_cpp(sys.argv[1], threads=1)\n"
        f"stream = llm.stream(VideoRows(np.ones((2, {WIDTH}), 'f')), 'Speak'); next(stream)"
    )
    command = [sys.executable, "-c", script, str(parrot_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told_what_it_cannot_do_and_does_the_rest(parrot_path: Path) -> None:
    if "OPENMP = 1" not in llama_cpp.llama_print_system_info().decode():
        pytest.skip("this build of llama.cpp has no OpenMP")
    script = f"""
import os, signal, sys, threading
import numpy as np
from vqedge.errors import BackendUnavailable
from vqedge_runtime.llm import VideoRows, open_llama_cpp

def ask(llm=None, threads=2):
    try:
        llm = llm or open_llama_cpp(sys.argv[1], threads=threads, context=256)
        print(llm.ask(VideoRows(np.ones((2, {WIDTH}), "f")), "Speak").text, flush=True)
    except BackendUnavailable as error:
        print(error, flush=True)

shared = open_llama_cpp(sys.argv[1], threads=2, context=256)
if os.fork() == 0:
    signal.alarm(20)
    ask(shared)
    ask()
    ask(threads=1)
    other = threading.Thread(target=ask, args=[shared])
    other.start()
    other.join()
    os._exit(0)
os.wait()
ask(shared)
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(parrot_path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = run.stdout.splitlines()
    assert [line == SPEECH for line in said] == [False, False, True, True, True], run
    assert all("'spawn'" in line and "threads=1" in line for line in said[:2])
