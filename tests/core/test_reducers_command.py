"""`vqedge eval --reducers`: which rows, what they say, what is refused; and the page of them."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_baselines import Stub, write_checkpoint

import vqedge.commands.reducers as command
from vqedge.commands.reducers import OWN, budgets_from_text, names_from_text, run_reducers
from vqedge.config import ModelConfig, QuantizerConfig
from vqedge.errors import ConfigError
from vqedge.model.checkpoint import open_checkpoint
from vqedge.model.quantizer import KMeansQuantizer
from vqedge.model.reducers.measure import median_ms, peak_mb, quantisation_error
from vqedge.reducers import TRAINABLE, TRAINING_FREE

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
    assert budgets_from_text("8,16,64", 64, 32) == [8, 16, 64]
    assert budgets_from_text(None, 64, 32) == [32]
    with pytest.raises(ConfigError, match="--budget auto: reducers want numbers"):
        budgets_from_text("auto", 64, 32)
    with pytest.raises(ConfigError, match="--budget 65: this checkpoint takes 1 to 64"):
        budgets_from_text("8,65", 64, 32)


def test_it_wants_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --checkpoint DIR, as models/tiny"):
        run_reducers("all", "synthetic", None, trained=tmp_path)


# ---- costs


def test_the_error_is_a_share_of_the_squares() -> None:
    rows = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = KMeansQuantizer(2, 4, 0.5)(rows, torch.tensor(2))
    assert quantisation_error(rows, found) == pytest.approx(2.0 / 14.0)


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
    bench = object.__new__(command._Bench)
    bench.items = command.suite_items("synthetic", 20)
    rows = list(bench.trained([OWN, "tome", "scissor"], [8, 32], tmp_path))
    assert [(row["reducer"], row["budget"], row["steps"]) for row in rows] == [
        ("tome", 8, 120),
        ("tome", 32, 120),
        (OWN, 8, 120),
    ]
    assert opened == ["any name", "means"], "each is opened once for all its budgets"
    assert all(row["protocol"] == "trained" and row["n"] == 20 for row in rows)
    said = capsys.readouterr().err
    kind = "model.quantizer.kind=reducer:scissor"
    assert f"scissor was not trained: vqedge train recipes/reducers.yaml {kind} -o" in said
    assert "tome was not trained" not in said and "vqtoken was not trained" not in said


# ---- the real thing


@pytest.mark.slow
def test_rows_of_the_real_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of itself as if it were trained: the same answers in both tables."""
    shutil.copytree(checkpoint, tmp_path / "again")
    run_reducers(
        f"{OWN},prumerge",
        "synthetic",
        checkpoint,
        budget="8",
        limit=4,
        trained=tmp_path,
        as_json=True,
    )
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["n"], document["clips"], document["tokens_before"]) == (4, 1, 2048)
    own, attended, trained = document["rows"]
    assert [row["reducer"] for row in document["rows"]] == [OWN, "prumerge", OWN]
    assert {key: own[key] for key in trained if key not in {"protocol", "steps"}} == {
        key: value for key, value in trained.items() if key not in {"protocol", "steps"}
    }
    for row in (own, attended):
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
    assert (
        "| tome | 50% [35%, 65%] | 8.0 | 6.25 | 0.250 | 90 | 80 | 0.10% | | 1.50 | 9.2 |" in page
    )
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


def test_the_page_describes_every_reducer_and_every_method_on_paper() -> None:
    page = SCRIPT["page"](DOCUMENT)
    for name in TRAINING_FREE:
        assert f"`{name}`" in page, name
    assert page.count("*What it is not.*") == page.count("\n### ") - 1  # one is a table's
    for method in ("VideoLLM-MoD", "MustDrop's prefill and KV stages", "CrossLMM, 9 tokens"):
        assert f"| {method}" in page


def test_the_committed_page_is_fresh() -> None:
    assert SCRIPT["main"]([]) == 0
