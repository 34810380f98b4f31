"""Validation on held-out clips: what is asked, how much of it at once, and which save did best."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fake_clips import read_nothing
from safetensors.torch import load_file
from tiny_model import CODES, CONFIG, random_codes, random_maps, tiny_llm, tiny_tokenizer
from tiny_run import config_for, log_of, run

from vqedge.checkpoint import METRICS
from vqedge.config import ModelConfig
from vqedge.data.clips import QuestionAnswer
from vqedge.data.generated import GeneratedClips
from vqedge.data.jsonl import FileClip, VideoFile
from vqedge.model.encoder import Bridge
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.progress import Clock
from vqedge.recipe import WorldConfig
from vqedge.train import train
from vqedge.training import run as run_module
from vqedge.training.batches import Batch, Batches
from vqedge.training.cache import QuantizedClips
from vqedge.training.dataset import TrainingClips
from vqedge.training.folder import STATE, RunFolder, numbered
from vqedge.training.held_out import exact_match
from vqedge.training.questions import HeldOut, questions_of
from vqedge.training.run import Run

pytestmark = pytest.mark.usefixtures("train_cache")

ASKING = CONFIG.model_copy(
    update={"quantizer": CONFIG.quantizer.model_copy(update={"kind": "reducer:query-window"})}
)
PREFIX = 3 + CODES  # the tokenizer's, and those of the video

# ---- what is asked


def clip_of(*asked: QuestionAnswer) -> FileClip:
    return FileClip(VideoFile(Path("a.mp4")), asked, read_nothing)


class Listed:
    """A source of given clips."""

    vocabulary: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - a constant of a stand-in

    def __init__(self, *clips: FileClip) -> None:
        self._clips, self.fingerprint = clips, "listed"

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> FileClip:
        return self._clips[number]


class Likes(torch.nn.Module):
    """Finds every answer wrong as a whole, and the longer the likelier."""

    def forward(self, _clips: Any, batch: Any) -> Scores:
        lengths = [
            (batch.targets[row][batch.segment[row] == segment] >= 0).sum()
            for row in range(len(batch.segment))
            for segment in range(1, int(batch.segment[row].max()) + 1)
        ]
        told = torch.stack(lengths).float()
        return Scores(told.sum(), told.sum(), torch.zeros(len(told), dtype=torch.bool), told)


def held_out(*clips: Any) -> TrainingClips:
    source, codes = Listed(*clips), random_codes(len(clips)).half()
    kept = {CODES: QuantizedClips(codes, random_maps(len(clips)).to(torch.uint8))}
    return TrainingClips((source,), (kept,), (1.0,), CONFIG.encoder.frames, False)


def batches_of(tmp_path: Path, clips: TrainingClips, asked: Sequence[HeldOut]) -> list[Batch]:
    batches = Batches(config_for(tmp_path), tiny_tokenizer(), torch.device("cpu"))
    return [*batches.held_out(clips, asked)]


def validated(
    tmp_path: Path, *clips: FileClip, is_over: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    batches = Batches(config_for(tmp_path), tiny_tokenizer(), torch.device("cpu"))
    model: Any = Likes()
    kept_back = held_out(*clips)
    asked = questions_of(kept_back, 200)
    return exact_match(model, kept_back, asked, batches, Accelerator(), is_over)


def test_all_questions_of_a_file_are_asked(tmp_path: Path) -> None:
    """A long row is cut, and no question is asked twice."""
    many = [QuestionAnswer(f"kind {n % 2}", f"Number {n}?", "a") for n in range(50)]
    clips = held_out(clip_of(*many), clip_of(many[0]))
    asked = questions_of(clips, 200)
    assert [each.item for each in asked] == [*many, many[0]]
    [batch] = batches_of(tmp_path, clips, asked)
    rows = batch.packed.segment.amax(dim=1).tolist()
    assert sum(rows) == 51 and max(rows) < 25 and rows[-1] == 1
    assert batch.packed.ids.shape[1] <= PREFIX + 256
    found = validated(tmp_path, clip_of(*many), clip_of(many[0]))
    assert found == {"exact_match": 0.0, "kind 0": 0.0, "kind 1": 0.0}


def test_of_a_long_file_so_many_are_asked_the_same_every_time() -> None:
    """Every clip once before any is asked twice; those with few questions all of them."""
    own = [
        clip_of(*(QuestionAnswer("all", f"{clip}, {n}?", "a") for n in range(count)))
        for clip, count in enumerate((1, 40, 5, 40))
    ]
    clips = held_out(*own)
    for most, expected in ((3, 1), (12, 4), (14, 5), (30, 12)):
        asked = questions_of(clips, most)
        counts = Counter(each.pick.number for each in asked)
        assert len({*asked}) == len(asked) == most and max(counts.values()) == expected
        assert asked == questions_of(clips, most)
        assert asked == sorted(asked, key=lambda each: each.pick.number)
    assert counts[0] == 1 and counts[2] == 5
    firsts = [each.item.question.split()[1] for each in questions_of(clips, 4)]
    assert firsts != ["0?"] * 4, "kinds often stand in one order about each clip"
    assert len(questions_of(clips, 200)) == 86


def test_a_clip_that_is_made_is_asked_one_question_of_each_kind_in_one_row(tmp_path: Path) -> None:
    source = GeneratedClips(1, 17)
    stored = QuantizedClips(random_codes(17).half(), random_maps(17).to(torch.uint8))
    clips = TrainingClips((source,), ({CODES: stored},), (1.0,), CONFIG.encoder.frames, False)
    asked = questions_of(clips, 1)
    kinds = [(each.pick.number, each.item.kind) for each in asked]
    assert len({*kinds}) == len(kinds) > 17 * 3
    whole, rest = batches_of(tmp_path, clips, asked)
    assert len(whole.packed.ids) == 16 and len(rest.packed.ids) == 1
    assert whole.packed.ids.shape[1] > PREFIX + 256, "longer than a row of a file may be"
    counts = Counter(number for number, _ in kinds)
    rows = [*whole.packed.segment.amax(dim=1), *rest.packed.segment.amax(dim=1)]
    assert [int(row) for row in rows] == [counts[number] for number in range(17)]


@pytest.mark.parametrize("model", [CONFIG, ASKING], ids=["codes", "asking"])
def test_rows_and_batches_are_cut_by_their_tokens(tmp_path: Path, model: ModelConfig) -> None:
    """However long questions are, and however many choices one has."""
    choices = tuple(f"choice {number}" for number in range(30))
    asked = [
        HeldOut(pick, QuestionAnswer("choice", "long " * 20 + "?", answer, choices), choices, True)
        for pick in held_out(*[clip_of()] * 9).in_order()
        for answer in choices[:2]
    ]
    longest = QuestionAnswer("free", "long " * 400 + "?", "a")
    asked.append(HeldOut(asked[-1].pick, longest, ("a",), True))
    seen = list[tuple[Any, ...]]()

    class Unread(Batches):
        def _batch(self, *words: Any) -> Any:
            seen.append(words)

    batches = Unread(config_for(tmp_path, model=model), tiny_tokenizer(), torch.device("cpu"))
    [*_] = batches.held_out(held_out(*[clip_of()] * 9), asked)
    tokenizer = tiny_tokenizer()
    for _, picks, budget, rows in seen:
        lengths = [
            sum(len(tokenizer.question(q.question)) + len(q.answer) for q in row) for row in rows
        ]
        assert len(picks) == len(rows) <= 16 and budget == CODES
        alone = len(rows) == 1 and len(rows[0]) == 1
        assert alone or max(lengths) <= 256 or model is ASKING
        assert alone or len(rows) * (PREFIX + max(lengths)) ** 2 <= 1 << 20
        assert model is CONFIG or {*map(len, rows)} == {1}
    answers = [item.answer for *_, rows in seen for row in rows for item in row]
    assert answers == [*choices] * 18 + ["a"]
    assert max(len(row) for *_, rows in seen for row in rows) == (2 if model is CONFIG else 1)


def test_validation_ends_at_once_when_it_is_told_to(tmp_path: Path) -> None:
    asked = iter([False, True])
    many = [QuestionAnswer("all", "long " * 60 + "?", "a") for _ in range(99)]
    assert validated(tmp_path, clip_of(*many), is_over=lambda: next(asked)) is None


def test_of_choices_the_likeliest_is_said(tmp_path: Path) -> None:
    def choice(answer: str, *choices: str) -> QuestionAnswer:
        return QuestionAnswer("choice", "Which?", answer, choices)

    right, wrong = choice("long", "a", "long", "b"), choice("a", "a", "long")
    tie = choice("bb", "aa", "bb")
    free = QuestionAnswer("free", "What?", "long")
    found = validated(tmp_path, clip_of(right, free, wrong), clip_of(right, tie))
    assert found == {"exact_match": 0.4, "choice": 0.5, "free": 0.0}


def test_of_choices_in_several_rows_the_likeliest_is_said(tmp_path: Path) -> None:
    """And in several batches."""
    names = tuple("x" * length for length in range(1, 60))
    longest, other = (
        QuestionAnswer("choice", "Which " * 30, answer, names) for answer in (names[-1], names[3])
    )
    kept_back = held_out(clip_of(other, longest, other))
    assert len(batches_of(tmp_path, kept_back, questions_of(kept_back, 9))) > 3
    found = validated(tmp_path, clip_of(other, longest, other))
    assert found == {"exact_match": 0.3333, "choice": 0.3333}


def test_likelihood_is_that_of_the_answer_alone(tmp_path: Path) -> None:
    """Of the real model: what it says of an answer does not depend on the others of its row."""
    torch.manual_seed(0)
    model = VideoLanguageModel(Bridge(CONFIG), tiny_llm()).eval()
    item = QuestionAnswer("choice", "Which?", "a", ("a", "bc"))

    def likelihoods(items: Sequence[QuestionAnswer]) -> list[float]:
        clips = held_out(clip_of(*items))
        [batch] = batches_of(tmp_path, clips, questions_of(clips, 9))
        with torch.no_grad():
            found = model(batch.clips, batch.packed).likelihood
        assert found is not None
        return [float(value) for value in found]

    alone = [likelihoods([QuestionAnswer("x", "Which?", answer)])[0] for answer in item.choices]
    assert likelihoods([item]) == pytest.approx(alone, abs=1e-4)
    assert all(value < -1 for value in alone) and alone[0] != alone[1]


# ---- when a run is to stop


@pytest.mark.parametrize(
    ("stopped", "steps_then"),
    [((Run, "step"), (1, 2, 3, 4)), ((run_module, "exact_match"), (2, 4))],
    ids=["stepping", "validating"],
)
def test_a_run_that_is_stopped_saves_without_validation(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: Path,
    stopped: tuple[Any, str],
    steps_then: tuple[int, ...],
) -> None:
    """A kill follows in seconds."""
    place, name = stopped
    at_place = getattr(place, name)

    def stopping(*words: Any) -> Any:
        clock.stop()
        return at_place(*words)

    monkeypatch.setattr(place, name, stopping)
    for steps in steps_then:
        clock = Clock()
        found = train(config_for(tmp_path / "run"), read_nothing, resume=True, clock=clock)
        assert (found is None) == (steps < 4)
        last = log_of(tmp_path / "run")[-1]
        assert last["step"] == steps and "validation" not in last
        assert int(json.loads((tmp_path / "run" / METRICS).read_text())["step"]) == steps
    expected, found = load_file(whole / STATE), load_file(tmp_path / "run" / STATE)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_whose_time_is_up_is_validated_at_its_end_alone(tmp_path: Path) -> None:
    while run(config_for(tmp_path), resume=True, minutes=0.0) is None:
        pass
    assert [record["step"] for record in log_of(tmp_path) if "validation" in record] == [4]


# ---- which save did best


def saved(folder: Path, shares: dict[int, float], told: str | None = None) -> None:
    for step, share in shares.items():
        path = numbered(folder, step)
        path.mkdir(parents=True)
        metrics = {"validation": {"exact_match": share}} | (
            {"validation_set": told} if told else {}
        )
        (path / METRICS).write_text(json.dumps(metrics))


def test_figures_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    folder = RunFolder(config_for(tmp_path, keep=1))
    saved(tmp_path, {2: 0.9, 4: 0.8})
    assert folder.best(4) == (numbered(tmp_path, 2), 0.9)
    saved(tmp_path, {6: 0.3, 8: 0.1}, told="others")
    numbered(tmp_path, 10).mkdir()  # it was stopped here
    assert folder.best(10) == (numbered(tmp_path, 6), 0.3)
    folder._prune(10)
    assert sorted(tmp_path.iterdir()) == [numbered(tmp_path, step) for step in (2, 6, 10)]


def test_a_run_notes_what_its_figures_are_of(tmp_path: Path) -> None:
    told = []
    for seed in (2, 2, 3):
        config = config_for(tmp_path, validation=(WorldConfig(seed=seed, clips=2),))
        run(config.model_copy(update={"output": tmp_path / str(len(told))}))
        told.append(json.loads((tmp_path / str(len(told)) / METRICS).read_text())["validation_set"])
    assert told[0] == told[1] != told[2]


def test_where_none_is_kept_none_is_best(tmp_path: Path) -> None:
    saved(tmp_path, {2: 0.9, 4: 0.1})
    folder = RunFolder(config_for(tmp_path, keep=0))
    assert folder.best(4) is None
    folder._prune(4)
    assert not [*tmp_path.iterdir()]


def test_of_a_run_that_took_more_steps_than_it_has_now_all_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter([0.1, 0.5, 0.9])
    monkeypatch.setattr("vqedge.training.run.exact_match", lambda *_: {"exact_match": next(left)})
    run(config_for(tmp_path, steps=6, keep=3))
    for steps in (4, 5):
        run(config_for(tmp_path, steps=steps, keep=3), resume=True)
    assert "did best" not in capsys.readouterr().err
