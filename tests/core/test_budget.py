"""The budget on its way from the user to the encoder, and the ids that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import tiny_facts, tiny_quantizer, write_bundle

from vqedge.budget import ADAPTIVE, budget_from_text
from vqedge.commands.inspect import facts_of
from vqedge.errors import ConfigError, UsageError
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel

ADAPTING = {"codes": 64, "default_budget": 16, "adaptive_error": 0.25}
TABLES = {"levels": 4, "entries": 1024, "sha256": "ab" * 32}
LEARNED = {"kind": "codebook", "codebook": TABLES}
FRAMES = np.zeros((8, 224, 224, 3), np.uint8)


def session(path: Path, levels: int = 0, **changes: Any) -> VideoQA:
    """A session with stand-ins for both models, on a bundle of this quantizer."""
    facts = tiny_facts(quantizer=tiny_quantizer(**changes))
    manifest = write_bundle(path / "fake.vqedge", facts=facts).manifest
    encoder = FakeEncoder(manifest.quantizer.codes, 576, levels)
    return VideoQA(encoder, FakeBridge(576), FakeLanguageModel(), manifest)


@pytest.mark.parametrize(("text", "wanted"), [(None, None), ("auto", "auto"), ("32", 32), ("1", 1)])
def test_what_users_write(text: str | None, wanted: object) -> None:
    assert budget_from_text(text) == wanted


@pytest.mark.parametrize("text", ["", "many", "AUTO", "8.0", "0", "-1"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match=f"--budget {text}: give a number of tokens from 1 up, or"):
        budget_from_text(text)


def test_a_budget_as_the_encoder_takes_it(tmp_path: Path) -> None:
    qa = session(tmp_path, **ADAPTING)
    assert [qa.checked_budget(budget) for budget in (None, 1, 64)] == [16, 1, 64]
    assert qa.checked_budget("auto") == ADAPTIVE
    for budget in (ADAPTIVE, -1, 65):  # the encoder's 0 is not the user's
        with pytest.raises(ConfigError, match=f"budget {budget}: this bundle takes 1 to 64 tok"):
            qa.checked_budget(budget)


def test_auto_lets_the_clip_decide(tmp_path: Path) -> None:
    qa = session(tmp_path, **ADAPTING)
    counts = [qa.encode_frames(FRAMES, budget).tokens.count for budget in (None, "auto", 64, 8)]
    assert counts == [16, 32, 64, 8]  # the stand-in gives an adaptive clip half of its codes


def test_a_bundle_of_fixed_budgets_has_no_auto(tmp_path: Path) -> None:
    qa = session(tmp_path)
    with pytest.raises(ConfigError, match="budget auto: this bundle has a fixed budget; give a"):
        qa.encode_frames(FRAMES, "auto")


@pytest.mark.parametrize("levels", [0, 4])
def test_ids_of_a_learned_codebook_are_told(tmp_path: Path, levels: int) -> None:
    qa = session(tmp_path, levels, **(LEARNED if levels else {}))
    assert isinstance(qa.llm, FakeLanguageModel)
    qa.llm.enqueue("A red circle.")
    document = qa.ask(qa.encode_frames(FRAMES, 8), "What?").to_dict()
    if not levels:
        assert "ids" not in document
        return
    ids = document["ids"]
    assert [len(row) for row in ids] == [levels] * 8
    assert [number for row in ids for number in row] == list(range(8 * levels))


def test_inspect_tells_levels_and_entries(tmp_path: Path) -> None:
    session(tmp_path, **LEARNED, **ADAPTING)
    kind, facts = facts_of(tmp_path / "fake.vqedge")
    assert kind == "bundle"
    assert facts["quantizer"]["codebook"] == TABLES
    assert facts["quantizer"]["adaptive_error"] == 0.25
