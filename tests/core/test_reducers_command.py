"""`vqedge eval --reducers`: which rows, what they say, what is refused; and the page of them."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_baselines import Stub, write_checkpoint
from torch import nn

import vqedge.cli
import vqedge.commands.reducers as command
from vqedge.budget import ADAPTIVE
from vqedge.checkpoint import LORA, checkpoint_sha256
from vqedge.commands import reducer_costs
from vqedge.commands.measured import versions
from vqedge.commands.reducer_costs import Costs
from vqedge.commands.reducers import (
    OWN,
    ReducersOptions,
    budgets_from_text,
    names_from_text,
    run_reducers,
    trained_checkpoints,
)
from vqedge.config import EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.data.jsonl import VideoFile
from vqedge.data.suites import Item
from vqedge.errors import CheckpointError, ConfigError, UsageError, VideoError, VqedgeError
from vqedge.evaluate import Reply
from vqedge.model import reduced_answer
from vqedge.model.checkpoint import open_checkpoint
from vqedge.model.quantizer import KMeansQuantizer, Quantized
from vqedge.model.reducers.measure import median_ms, peak_mb, quantisation_error
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.registry import Sizes, make_reducer, reducer_quantizer
from vqedge.reducers import MOST_IN_PAIRS, TRAINABLE, TRAINING_FREE

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "_reducers.py"), run_name="reducers_page")
DROP_IN = {
    "reducer": "tome",
    "protocol": "drop-in",
    "budget": 8,
    "n": 40,
    "accuracy": 0.5,
    "interval": [0.35, 0.65],
    "tokens_mean": 8.0,
    "tokdense": 6.25,
    "error": 0.25,
    "torch_ms": 90.4,
    "onnx_ms": 80.0,
    "ids_differ": 0.001,
    "peak_mb": None,
    "reducer_gflops": 1.5,
    "prefill_gflops": 9.25,
}
DOCUMENT = {
    "suite": "synthetic",
    "n": 40,
    "clips": 6,
    "checkpoint": {"name": "tiny", "steps": 300},
    "tokens_before": 2048,
    "frames": 8,
    "machine": "a processor, 2 cores",
    "versions": {"torch": "2.0"},
    "rows": [DROP_IN],
}


# ---- what is asked for


def test_all_are_the_checkpoints_own_and_every_reducer() -> None:
    assert names_from_text("all") == [OWN, *TRAINING_FREE, *TRAINABLE]
    assert names_from_text(f"tome,{OWN}") == ["tome", OWN]
    with pytest.raises(ConfigError, match="--reducers none: choose all, or of vqtoken, uniform"):
        names_from_text("tome,none")


def test_budgets_are_numbers_within_the_codes() -> None:
    quantizer = QuantizerConfig()
    assert budgets_from_text("8,16,64", quantizer) == [8, 16, 64]
    assert budgets_from_text("8,8", quantizer) == [8], "a row would be there twice"
    assert budgets_from_text(None, quantizer) == [32]
    for word in ("most", "0"):
        with pytest.raises(UsageError, match=f"--budget {word}: give a number of tokens from 1"):
            budgets_from_text(f"8,{word}", quantizer)
    with pytest.raises(ConfigError, match="budget 65: this checkpoint takes 1 to 64"):
        budgets_from_text("8,65", quantizer)


def test_other_reducers_take_other_budgets_than_a_checkpoints_only_one() -> None:
    asking = QuantizerConfig(kind="reducer:query-window")
    assert budgets_from_text("8,16", asking) == [8, 16]


def test_as_many_as_the_clip_needs_is_the_last_budget() -> None:
    assert budgets_from_text("auto,8", QuantizerConfig()) == [8, ADAPTIVE]
    assert budgets_from_text("auto", QuantizerConfig()) == [ADAPTIVE]
    command.require_adaptive([OWN, "tome"], [8, ADAPTIVE])
    command.require_adaptive(["tome"], [8])
    with pytest.raises(UsageError, match="--budget auto: only vqtoken has it"):
        command.require_adaptive(["tome"], [8, ADAPTIVE])
    with pytest.raises(ConfigError, match="budget auto: this checkpoint has a fixed budget"):
        budgets_from_text("auto", QuantizerConfig(kind="reducer:uniform-pool"))


def test_it_wants_a_checkpoint() -> None:
    with pytest.raises(UsageError, match="give --checkpoint DIR, as models/tiny"):
        ReducersOptions("all", None)


def test_what_says_nothing_of_reducers_is_refused_by_name(tmp_path: Path) -> None:
    ReducersOptions("all", tmp_path, beside={"-m": False, "--show": False})
    with pytest.raises(UsageError, match="every reducer alike: leave out -m, --show"):
        ReducersOptions("all", None, beside={"-m": True, "--baselines": False, "--show": True})


@pytest.mark.parametrize(
    "option",
    [["-m", "a.vqedge"], ["--baselines"], ["--backend", "x"], ["--threads", "1"], ["--show"]],
    ids=lambda words: words[0],
)
def test_the_command_line_refuses_it(option: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"leave out {option[0]}$"):
        vqedge.cli.app(["eval", "--reducers", "tome", *option], standalone_mode=False)


def test_those_that_compare_all_pairs_are_left_out_of_all_and_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["tome", "vtm", "kmedoids"]
    assert command.with_room(names, MOST_IN_PAIRS, leave_out=False) == names
    assert command.with_room(names, MOST_IN_PAIRS + 1, leave_out=True) == ["vtm"]
    assert "tome is left out: 8,193 patches are too many" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="reducer:tome: compares all pairs of a clip's 8,193"):
        command.with_room(names, MOST_IN_PAIRS + 1, leave_out=False)


# ---- costs


def test_the_error_is_a_share_of_the_squares() -> None:
    rows = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = KMeansQuantizer(2, 4, 0.5)(rows, torch.tensor(2))
    assert quantisation_error(rows, found) == pytest.approx(2.0 / 14.0)


def test_means_of_features_of_length_one_are_compared_with_those() -> None:
    rows = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    for budget, error in ((2, 0.0), (1, 1.0 - 5.0 / 9.0)):
        found = KMeansQuantizer(2, 4, 0.5, unit_means=True)(rows, torch.tensor(budget))
        assert quantisation_error(rows, found, True) == pytest.approx(error, abs=1e-6)


class _OnGpu(nn.Module):
    """Uniform pooling that says where it is and takes patches from there only."""

    device = "cuda"

    def __init__(self) -> None:
        super().__init__()
        reducer = make_reducer("uniform-pool", Sizes(4, 2, 2, 3, 3, 4))
        self.inner = ReducerQuantizer(reducer, 4, 2)

    def to(self, device: Any) -> _OnGpu:
        self.device = device
        return self

    def forward(self, patches: torch.Tensor, budget: torch.Tensor, text: Any = None) -> Quantized:
        assert self.device == patches.device.type == budget.device.type
        found: Quantized = self.inner(patches, budget)
        return found


def test_costs_are_the_cpus_wherever_answers_come_from() -> None:
    quantizer, patches = _OnGpu(), torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
    there = SimpleNamespace(to=lambda device: patches.to(device), device="cuda")
    reduced: Any = SimpleNamespace(
        quantizer=quantizer,
        config=ModelConfig(),
        device=torch.device("cuda"),
        seen=lambda _item: there,
        text_of=lambda _item: None,
    )
    item: Any = None
    found = Costs(reduced, [item]).at(4)
    assert found["ids_differ"] == 0 and 0 < found["error"] < 1
    assert min(found["torch_ms"], found["onnx_ms"]) > 0 and found["reducer_gflops"] > 0
    assert quantizer.device == "cuda", "answers still come from where they came"


ASKING = ModelConfig(
    encoder=EncoderConfig(frames=2, size=28),
    quantizer=QuantizerConfig(kind="reducer:query-window", codes=5, default_budget=4),
    llm=LlmConfig(width=8),
)


def test_costs_of_tokens_that_follow_a_question_are_those_of_one() -> None:
    generator = torch.Generator().manual_seed(1)
    patches, text = torch.rand(8, 384, generator=generator), torch.rand(8, generator=generator)
    reduced: Any = SimpleNamespace(
        quantizer=reducer_quantizer(ASKING).eval(),
        config=ASKING,
        seen=lambda _item: patches,
        text_of=lambda _item: text,
    )
    item: Any = None
    found = Costs(reduced, [item]).at(4)
    assert found["ids_differ"] == 0 and found["error"] > 0 and found["reducer_gflops"] > 0


def test_patches_of_clips_are_kept_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []

    def look(frames: torch.Tensor, _attended: bool) -> torch.Tensor:
        encoded.append(int(frames))
        return torch.zeros(2, 4, 3)

    monkeypatch.setattr(reduced_answer, "frames_of", lambda clip, *_: np.array(clip))
    answerer: Any = SimpleNamespace(
        config=ModelConfig(),
        frames=2,
        read=None,
        device="cpu",
        encoder=SimpleNamespace(quantizer=SimpleNamespace(vit=look)),
    )
    patches = reduced_answer.SharedPatches(answerer, most_bytes=2 * 2 * 4 * 3 * 4)
    for _ in range(2):
        for clip in (1, 2, 3):
            item: Any = SimpleNamespace(clip=clip)
            assert patches.of(item).shape == (8, 3)
    assert encoded == [1, 2, 3, 3], "the third has no room"


def test_time_is_a_median_and_memory_is_what_a_call_takes() -> None:
    calls: list[int] = []
    assert 0 <= median_ms(lambda: calls.append(1), 3) < 50 and len(calls) == 4
    found = peak_mb(lambda: torch.ones(8, 1024, 1024).sum())
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 25 < found < 60


# ---- rows of checkpoints that were trained


def test_trained_checkpoints_are_found_and_those_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tome, means = (
        ModelConfig(quantizer=QuantizerConfig(kind=kind, codes=codes, default_budget=8))
        for kind, codes in (("reducer:tome", 32), ("kmeans", 16))
    )
    write_checkpoint(tmp_path / "any name", tome, 120)
    write_checkpoint(tmp_path / "means", means, 120)
    opened: list[str] = []

    def fake(path: Path) -> Any:
        opened.append(path.name)
        encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))
        return SimpleNamespace(config=open_checkpoint(path).config, encoder=encoder)

    monkeypatch.setattr(command, "opened_checkpoint", fake)
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda _budget: Stub(0.6))
    costs = SimpleNamespace(at=lambda budget: {"torch_ms": float(budget)})
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: costs)
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    bench = object.__new__(command._Bench)
    bench.timed = []
    bench.items = command.suite_items("synthetic", 20)
    rows = list(bench.trained(trained_checkpoints([OWN, "tome", "scissor"], tmp_path), [8, 32]))
    assert [(row["reducer"], row["budget"], row["steps"]) for row in rows] == [
        ("tome", 8, 120),
        ("tome", 32, 120),
        (OWN, 8, 120),
    ]
    assert opened == ["any name", "means"], "each is opened once for all its budgets"
    assert all(row["protocol"] == "trained" and row["n"] == 20 for row in rows)
    assert all(row["torch_ms"] == row["budget"] and row["prefill_gflops"] == 2.5 for row in rows)
    said = capsys.readouterr().err
    kind = "model.quantizer.kind=reducer:scissor"
    assert f"scissor was not trained: vqedge train recipes/reducers.yaml {kind} -o" in said
    assert "tome was not trained" not in said and "vqtoken was not trained" not in said


def test_clips_that_cannot_be_read_are_left_out_of_all_rows_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OfGoodFiles(Stub):
        config = ModelConfig()
        encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))

        def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
            return super().replies([self.of(item) for item in items])

        def of(self, item: Item) -> Item:
            assert isinstance(item.clip, VideoFile)
            if "bad" in item.clip.path.name:
                raise VideoError(f"{item.clip.path.name}: no such codec")
            return item

    def ask(names: Sequence[str]) -> None:
        suite = tmp_path / "mine.jsonl"
        lines = [{"video": name, "question": "What?", "answer": "red"} for name in names]
        suite.write_text("\n".join(map(json.dumps, lines)))
        for name in names:
            (tmp_path / name).touch()
        options = ReducersOptions("vqtoken", checkpoint, trained=tmp_path / "none")
        run_reducers(str(suite), options=options, as_json=True)

    timed: list[str] = []

    def costs(_: Any, clips: Sequence[Any]) -> Any:
        timed.extend(item.clip.path.name for item in clips)
        return SimpleNamespace(at=lambda _: {})

    stub, checkpoint = OfGoodFiles(0.6), write_checkpoint(tmp_path / "ours")
    monkeypatch.setattr(command, "opened_checkpoint", lambda _: stub)
    monkeypatch.setattr(reduced_answer, "SharedPatches", lambda _: stub)
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda _budget: stub)
    monkeypatch.setattr(reducer_costs, "Costs", costs)
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    with pytest.raises(VideoError, match="2 clips, questions or models failed"):
        ask(["bad.mp4", *(f"{number}.mp4" for number in range(6)), "bad2.mp4"])
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    (row,) = document["rows"]
    assert row["failed"] == ["bad.mp4: no such codec", "bad2.mp4: no such codec"]
    assert err.splitlines()[-2:] == [f"failed: {line}" for line in row["failed"]]
    assert (row["n"], row["clips"], row["by_clip"]["asked"]) == (6, 6, [1] * 6)
    assert timed == [f"{number}.mp4" for number in range(5)] and document["timed_clips"] == 5
    with pytest.raises(VideoError, match=r"bad\.mp4: no such codec"):
        ask(["bad.mp4"])


def test_the_document_is_of_the_model_that_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Losing(Stub):
        config = ModelConfig()
        encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))

        def of(self, _: Item) -> None:
            """Its patches."""

        def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
            shutil.rmtree(checkpoint, ignore_errors=True)  # while it is asked
            return super().replies(items)

    stub, checkpoint = Losing(0.6), write_checkpoint(tmp_path / "ours")
    sha256 = checkpoint_sha256(checkpoint)
    monkeypatch.setattr(command, "opened_checkpoint", lambda _: stub)
    monkeypatch.setattr(reduced_answer, "SharedPatches", lambda _: stub)
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda _budget: stub)
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: SimpleNamespace(at=lambda _: {}))
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    options = ReducersOptions(OWN, checkpoint, limit=20, trained=tmp_path / "none")
    run_reducers("synthetic", options=options, as_json=True)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["model"] == {"name": "ours", "checkpoint_sha256": sha256}
    assert document["checkpoint"] == {"name": "ours", "steps": 300}
    assert document["versions"] == versions()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checkpoints are stand-ins, one called `damaged` does not open; the list fills with names."""

    def fake(path: Path) -> Stub:
        log.append(path.name)
        if path.name == "damaged":
            raise CheckpointError("damaged: not a readable safetensors file")
        return stub

    log: list[str] = []
    stub: Any = Stub(0.6)
    stub.config = ModelConfig()
    stub.encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))
    monkeypatch.setattr(command, "opened_checkpoint", fake)
    for name, made in (("_reduced", lambda _: stub), ("_prefill", 2.5), ("_timed", [])):
        monkeypatch.setattr(command._Bench, name, lambda *_, made=made: made)
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: SimpleNamespace(at=lambda _: {}))
    return log


def test_a_reducer_that_fails_does_not_lose_the_rows_of_others(
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def quantizer(_: Any, name: str) -> None:
        if name == "tome":
            raise ConfigError("reducer:tome: does not fit")

    def run(names: str) -> None:
        options = ReducersOptions(names, ours, "8", limit=12, trained=tmp_path / "runs")
        run_reducers("synthetic", options=options, as_json=True)

    monkeypatch.setattr(command._Bench, "_quantizer", quantizer)
    ours = write_checkpoint(tmp_path / "ours")
    for name, kind in (("damaged", "reducer:vtm"), ("means", "kmeans")):
        config = ModelConfig(quantizer=QuantizerConfig(kind=kind))
        write_checkpoint(tmp_path / "runs" / name, config, 120)
    with pytest.raises(VideoError, match="2 clips, questions or models failed"):
        run(f"tome,vtm,{OWN}")
    out, err = capsys.readouterr()
    document = json.loads(out)
    rows = [(row["reducer"], row["protocol"]) for row in document["rows"]]
    assert rows == [("vtm", "drop-in"), (OWN, "drop-in"), (OWN, "trained")]
    assert document["failed"] == [
        "tome, drop-in: reducer:tome: does not fit",
        "vtm, trained: damaged: not a readable safetensors file",
    ]
    assert err.splitlines()[-2:] == [f"failed: {line}" for line in document["failed"]]
    with pytest.raises(VqedgeError, match=r"^tome, drop-in: reducer:tome: does not fit$"):
        run("tome")
    assert not capsys.readouterr().out, "there is no row to print"


def test_an_incomplete_checkpoint_is_told_before_hours_of_questions(
    tmp_path: Path, opened: list[str]
) -> None:
    ours, tome = (write_checkpoint(tmp_path / name) for name in ("ours", "runs/means"))
    (tome / LORA).unlink()
    options = ReducersOptions(OWN, ours, limit=12, trained=tmp_path / "runs")
    with pytest.raises(CheckpointError, match=f"means: no {LORA}"):
        run_reducers("synthetic", options=options)
    assert not opened


def test_every_checkpoint_of_one_reducer_is_found(tmp_path: Path) -> None:
    tome = ModelConfig(quantizer=QuantizerConfig(kind="reducer:tome"))
    folders = [write_checkpoint(tmp_path / name, tome, 120) for name in ("tome", "tome-long")]
    assert trained_checkpoints(["tome"], tmp_path) == dict(
        zip(["tome", "tome (tome-long)"], folders, strict=True)
    )


def test_a_kind_of_one_budget_has_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "asked", ASKING, 120)
    encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))
    fake: Any = SimpleNamespace(config=ASKING, encoder=encoder)
    monkeypatch.setattr(command, "opened_checkpoint", lambda _: fake)
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda _budget: Stub(0.6))
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: SimpleNamespace(at=lambda _: {}))
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    bench = object.__new__(command._Bench)
    bench.timed, bench.items = [], command.suite_items("synthetic", 20)
    found = {"query-window": tmp_path / "asked"}
    rows = list(bench.trained(found, [1, 2, 5]))
    assert [(row["reducer"], row["budget"]) for row in rows] == [("query-window", 4)]
    monkeypatch.setattr(command._Bench, "_quantizer", lambda *_: None)
    bench.answerer = fake
    rows = list(bench.drop_in([OWN], [1, 2, 5]))
    assert [(row["reducer"], row["budget"]) for row in rows] == [("reducer:query-window", 4)]


@pytest.mark.parametrize(
    ("kind", "row"), [("kmeans", OWN), ("codebook", "codebook"), ("reducer:tome", "reducer:tome")]
)
def test_the_checkpoints_own_row_is_named_after_what_it_is(
    kind: str, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda _budget: Stub(0.6))
    monkeypatch.setattr(command._Bench, "_quantizer", lambda *_: None)
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: SimpleNamespace(at=lambda _: {}))
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    bench = object.__new__(command._Bench)
    own: Any = SimpleNamespace(config=ModelConfig(quantizer=QuantizerConfig(kind=kind)))
    bench.answerer, bench.timed = own, []
    bench.items = command.suite_items("synthetic", 20)
    rows = list(bench.drop_in([OWN, "tome", "resampler"], [8]))
    assert [found["reducer"] for found in rows] == [row, "tome"]


def test_auto_is_a_row_of_k_means_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(command._Bench, "_reduced", lambda *_: lambda b: asked.append(b) or Stub(1))
    monkeypatch.setattr(command._Bench, "_quantizer", lambda *_: None)
    monkeypatch.setattr(reducer_costs, "Costs", lambda *_: SimpleNamespace(at=lambda _: {}))
    monkeypatch.setattr(command._Bench, "_prefill", lambda *_: 2.5)
    encoder = SimpleNamespace(quantizer=SimpleNamespace(quantizer=None))
    fakes = {
        kind: SimpleNamespace(
            config=ModelConfig(quantizer=QuantizerConfig(kind=kind)), encoder=encoder
        )
        for kind in ("kmeans", "reducer:tome")
    }
    for kind, fake in fakes.items():
        write_checkpoint(tmp_path / kind.removeprefix("reducer:"), fake.config, 120)
    monkeypatch.setattr(
        command,
        "opened_checkpoint",
        lambda path: fakes["kmeans" if path.name == "kmeans" else "reducer:tome"],
    )
    bench = object.__new__(command._Bench)
    bench.timed, bench.items = [], command.suite_items("synthetic", 20)
    own: Any = fakes["kmeans"]
    bench.answerer = own
    rows = list(bench.drop_in([OWN, "tome"], [8, ADAPTIVE]))
    wanted = [(OWN, 8), (OWN, "auto"), ("tome", 8)]
    assert [(row["reducer"], row["budget"]) for row in rows] == wanted
    assert ADAPTIVE in asked, "the answers are those of the adaptive budget"
    found = trained_checkpoints([OWN, "tome"], tmp_path)
    rows = list(bench.trained(found, [8, ADAPTIVE]))
    assert [(row["reducer"], row["budget"]) for row in rows] == wanted
    command._print_table(rows)
    assert "vqtoken        trained  auto 100.0%" in capsys.readouterr().out


def test_costs_of_as_many_tokens_as_the_clip_needs() -> None:
    generator = torch.Generator().manual_seed(1)
    patches = torch.rand(3, 6, generator=generator).repeat_interleave(4, dim=0)
    reduced: Any = SimpleNamespace(
        quantizer=KMeansQuantizer(8, 4, 1e-4),
        config=ModelConfig(),
        seen=lambda _item: patches,
        text_of=lambda _item: None,
    )
    item: Any = None
    costs = Costs(reduced, [item])
    adaptive = costs.at(ADAPTIVE)
    assert adaptive["ids_differ"] == 0
    assert adaptive["error"] < 1e-6 < costs.at(2)["error"], "three kinds of patches, three codes"


# ---- the real thing


@pytest.mark.slow
def test_rows_of_the_real_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of itself as if it were trained: the same answers in both tables."""
    shutil.copytree(checkpoint, tmp_path / "again")
    options = ReducersOptions(f"{OWN},prumerge", checkpoint, "8", limit=4, trained=tmp_path)
    run_reducers("synthetic", options=options, as_json=True)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["n"], document["clips"], document["tokens_before"]) == (4, 1, 2048)
    own, attended, trained = document["rows"]
    assert [row["reducer"] for row in document["rows"]] == [OWN, "prumerge", OWN]
    differing = {"protocol", "steps", "torch_ms", "onnx_ms", "peak_mb"}
    assert {key: own[key] for key in own if key not in differing} == {
        key: value for key, value in trained.items() if key not in differing
    }
    assert document["costs_on"] == "cpu"
    for row in (own, attended, trained):
        assert row["ids_differ"] == 0 and row["torch_ms"] > 0 and row["onnx_ms"] > 0
        assert 1 <= row["tokens_mean"] <= 8
        assert row["prefill_gflops"] == own["prefill_gflops"] > 1
    assert own["error"] < min(attended["error"], 1), "k-means fits better than sums"
    assert attended["reducer_gflops"] > 0
    page = SCRIPT["page"](document)
    assert "### 8 tokens, drop-in" in page and "| prumerge | " in page


# ---- the page


def test_the_page_has_a_row_for_each_and_says_what_is_missing() -> None:
    page = SCRIPT["page"](DOCUMENT)
    assert "| tome | 50% [35%, 65%] | 8.0 | 6.25 | 0.250 | 90 | 80 | 0.10% | | 1.50 | 9.2 |" in page
    assert "No checkpoint trained with a reducer was there" in page
    trained = {**DROP_IN, "protocol": "trained", "steps": 120}
    fewer = {**trained, "budget": 16, "tokens_mean": 9.26, "accuracy": 0.6}
    other = {**trained, "reducer": "resampler", "budget": 16, "tokens_mean": 16.0}
    page = SCRIPT["page"]({**DOCUMENT, "rows": [DROP_IN, other, trained, fewer]})
    table = """### Trained

| reducer | steps | 8 tokens | 16 tokens |
|---|---|---|---|
| tome | 120 | 50% [35%, 65%] | 60% [35%, 65%] at 9.3 |
| resampler | 120 | | 50% [35%, 65%] |
"""
    assert table in page, "in the order of the drop-in rows"
    costs = """### Costs of those that are trained only

| reducer | budget | tokens | error | PyTorch ms | ONNX Runtime ms | ids | peak MB | GFLOPs | prefill |
|---|---|---|---|---|---|---|---|---|---|
| resampler | 16 | 16.0 | 0.250 | 90 | 80 | 0.10% | | 1.50 | 9.2 |
"""  # noqa: E501
    assert costs in page, "tome's are in its drop-in row"
    again = {**trained, "reducer": "tome (again)"}
    page = SCRIPT["page"]({**DOCUMENT, "rows": [DROP_IN, other, trained, again]})
    assert costs in page, "and so are those of its second training"
    older = {key: value for key, value in other.items() if key != "torch_ms"}
    page = SCRIPT["page"]({**DOCUMENT, "rows": [DROP_IN, older, trained]})
    assert "Costs of those" not in page, "a document that has none"


def test_the_page_tells_rows_apart_by_points_from_k_means() -> None:
    own = {**DROP_IN, "reducer": OWN, "by_clip": {"right": [3] * 10, "asked": [4] * 10}}
    tome = {**DROP_IN, "by_clip": {"right": [2] * 10, "asked": [4] * 10}}
    own, tome = {**own, "accuracy": 0.75}, {**tome, "accuracy": 0.5}
    trained = [{**row, "protocol": "trained", "steps": 120} for row in (own, tome)]
    page = SCRIPT["page"]({**DOCUMENT, "rows": [own, tome, *trained]})
    assert "told apart by their points from k-means" in page
    assert "| reducer | accuracy | points from k-means | tokens |" in page
    assert "| tome | 50% [35%, 65%] | -25.0 [-25.0, -25.0] | 8.0 |" in page
    assert "| vqtoken | 75% [35%, 65%] | | 8.0 |" in page
    assert "Points from k-means, as trained:\n\n| reducer | 8 tokens |" in page
    assert "| tome | -25.0 [-25.0, -25.0] |\n" in page
    older = SCRIPT["page"](DOCUMENT)
    assert "points from k-means" not in older and "Points from k-means, as" not in older


def test_the_page_has_the_row_of_an_adaptive_length() -> None:
    own = {**DROP_IN, "reducer": OWN, "budget": 16, "tokens_mean": 16.0}
    auto = {**own, "budget": "auto", "tokens_mean": 12.34}
    trained = [{**row, "protocol": "trained", "steps": 120} for row in (auto, own)]
    page = SCRIPT["page"]({**DOCUMENT, "rows": [DROP_IN, auto, own, *trained]})
    heads = re.findall("^### (.*, drop-in)$", page, re.MULTILINE)
    assert heads == [
        "8 tokens, drop-in",
        "16 tokens, drop-in",
        "As many tokens as needed, drop-in",
    ]
    assert "| vqtoken | 50% [35%, 65%] | 12.3 | 6.25 |" in page
    assert "| reducer | steps | 16 tokens | As many tokens as needed |" in page
    assert "| vqtoken | 120 | 50% [35%, 65%] | 50% [35%, 65%] at 12.3 |" in page


def test_the_page_describes_every_reducer_and_every_method_on_paper() -> None:
    page = SCRIPT["page"](DOCUMENT)
    for name in TRAINING_FREE:
        assert f"`{name}`" in page, name
    assert page.count("*What it is not.*") == page.count("\n### ") - 1  # one is a table's
    for method in ("VideoLLM-MoD", "MustDrop's prefill and KV stages", "CrossLMM, 9 tokens"):
        assert f"| {method}" in page


def test_the_committed_page_is_fresh() -> None:
    assert SCRIPT["main"]([]) == 0
