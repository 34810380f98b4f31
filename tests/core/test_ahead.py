"""What a step needs is made while the step before it runs, and is the same."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import CODES, FRAMES, random_codes, random_maps, tiny_tokenizer
from tiny_run import config_for

from vqedge.data.generated import GeneratedClips
from vqedge.data.mixture import Pick
from vqedge.model.packing import pack
from vqedge.training import batches as module
from vqedge.training.ahead import Ahead
from vqedge.training.batches import Batches
from vqedge.training.cache import QuantizedClips
from vqedge.training.dataset import TrainingClips
from vqedge.training.questions import questions_of

PICK = Pick(0, 0, False)


def test_the_next_step_is_made_while_this_one_runs() -> None:
    begun = {step: threading.Event() for step in range(3)}
    with Ahead(lambda step: begun[step].set(), 3) as ready:
        ready(0)
        assert begun[1].wait(timeout=120), "while step 0 has what it needs"
        assert not begun[2].is_set()


@pytest.mark.parametrize("first", [0, 2])
def test_every_step_is_made_once_in_one_thread_that_ends(first: int) -> None:
    made: list[tuple[int, str]] = []

    def make(step: int) -> int:
        made.append((step, threading.current_thread().name))
        return 10 * step

    with Ahead(make, 4) as ready:
        assert [ready(step) for step in range(first, 4)] == [*range(10 * first, 40, 10)]
    assert [step for step, _ in made] == [*range(first, 4)], "none beyond the end"
    (name,) = {name for _, name in made}
    assert name not in {thread.name for thread in threading.enumerate()}


def test_what_is_wrong_is_raised_at_the_step_that_it_is_of() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("clip 7")
        return step

    with Ahead(make, 3) as ready:
        assert ready(0) == 0
        with pytest.raises(ValueError, match="clip 7"):
            ready(1)


def test_words_are_not_cut_by_two_threads_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Held-out clips are looked at while the next step is made: calls change the tokenizer."""
    busy = threading.Lock()

    def alone(*words: Any) -> Any:
        assert busy.acquire(blocking=False)
        time.sleep(0.05)
        busy.release()
        return pack(*words)

    monkeypatch.setattr(module, "pack", alone)
    stored = QuantizedClips(random_codes(1).half(), random_maps(1).to(torch.uint8))
    clips = TrainingClips((GeneratedClips(1, 1),), ({CODES: stored},), (1.0,), FRAMES, False)
    batches = Batches(config_for(tmp_path), tiny_tokenizer(), torch.device("cpu"))
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(batches.of_step, clips, [PICK], CODES, 0)
        watched = pool.submit(lambda: [*batches.held_out(clips, questions_of(clips, 1))])
        assert made.result().kinds and watched.result()
