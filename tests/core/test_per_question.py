"""Tokens that follow the question: batches, training, and answers from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_answer import QUESTIONS, TOKENIZER, item_of, replies_of
from tiny_model import CODES, CONFIG, random_backbone, tiny_llm, tiny_tokenizer
from tiny_run import (
    CLIPS,
    config_for,
    fill_cache,
    fill_features,
    killed_and_resumed,
    log_of,
    reducer_weights,
    run,
    tiny_training,
)

import vqedge.model.answer as answer
from vqedge.config import QuantizerConfig
from vqedge.data.generated import GeneratedClips
from vqedge.errors import ConfigError, PromptError
from vqedge.model.answer import CheckpointAnswerer, checked_budget
from vqedge.model.batch import NO_WORD
from vqedge.model.checkpoint import load_reducer
from vqedge.model.encoder import VideoEncoder, trained_bridge
from vqedge.model.llm import mean_embeddings, with_lora
from vqedge.model.reducers.training import REDUCER_PREFIX, ReducerWithWeights
from vqedge.model.vlm import VideoLanguageModel
from vqedge.recipe import TrainConfig
from vqedge.reducers import TRAINABLE, TRAINING_FREE, follows_question
from vqedge.training.batches import Batch, Batches
from vqedge.training.dataset import TrainingClips
from vqedge.training.features import FeatureCache
from vqedge.training.folder import STATE

KIND = "reducer:query-window"
ASKING = CONFIG.model_copy(
    update={"quantizer": CONFIG.quantizer.model_copy(update={"kind": KIND, "codes": CODES + 1})}
)
WINDOWS = CONFIG.encoder.frames  # one a frame fits a budget of five
CLIP = GeneratedClips(1, 1)[0]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random features of clips, and a tiny language model."""
    cache = tmp_path_factory.mktemp("cache")
    for seed in (1, 2):
        fill_features(cache, ASKING, seed)
        fill_cache(cache, CONFIG, seed)
    with tiny_training(cache):
        yield cache


def test_of_all_kinds_one_follows_the_question() -> None:
    names = [name for name in (*TRAINING_FREE, *TRAINABLE) if follows_question(f"reducer:{name}")]
    assert names == ["query-window"]
    assert not any(map(follows_question, ("kmeans", "codebook", "grid")))


def test_it_has_one_budget(tmp_path: Path) -> None:
    assert config_for(tmp_path, model=ASKING).budgets == (CODES,)
    assert config_for(tmp_path).budgets == (3, CODES)
    quantizer = QuantizerConfig(kind=KIND)
    assert checked_budget(quantizer, None) == checked_budget(quantizer, 32) == 32
    for budget in ("auto", 16, 64):
        with pytest.raises(ConfigError, match=f"^budget {budget}: .* has one, 32; leave it out"):
            checked_budget(quantizer, budget)


# ---- training


@pytest.fixture(scope="module")
def model() -> VideoLanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        reducer = ReducerWithWeights(ASKING)
        bridge, llm = trained_bridge(ASKING), with_lora(tiny_llm(), ASKING.llm)
        torch.nn.init.normal_(bridge.attention.scale, std=2.0)
    return VideoLanguageModel(bridge, llm, reducer).requires_grad_(False).eval()


def batch_of(cache: Path, config: TrainConfig) -> Batch:
    """Two questions each about two clips, one of them backwards."""
    source = GeneratedClips(1, CLIPS)
    stored = FeatureCache(cache, ASKING.encoder, source).load()
    clips = TrainingClips((source,), (stored,), (1.0,), ASKING.encoder.frames, True)
    first, second, _ = clips.in_order()
    picks = [first, replace(second, backwards=True)]
    batches = Batches(config, tiny_tokenizer(), torch.device("cpu"))
    return batches.of_step(clips, picks, config.budgets[0], 1)


def test_every_question_has_a_row_with_tokens_of_its_own(
    cache: Path, tmp_path: Path, model: VideoLanguageModel
) -> None:
    """The loss is that of asking one at a time, each about the clip as its words make it."""
    batch = batch_of(cache, config_for(tmp_path, model=ASKING))
    clips, packed, asked = batch.clips, batch.packed, batch.clips.asked
    assert asked is not None and asked.clip.tolist() == [0, 0, 1, 1]
    assert len(packed.ids) == packed.question_count == len(batch.kinds) == 4
    embed = model.llm.get_input_embeddings()
    losses, codes, right = list[torch.Tensor](), list[torch.Tensor](), list[bool]()
    for row, clip in enumerate(asked.clip.tolist()):
        words = asked.ids[row][asked.ids[row] != NO_WORD]
        features = clips.rows[clip].float()
        text = embed(words).mean(dim=0)
        (found,) = model.reducer.quantizer.at_budgets(features, [CODES], text)
        codes.append(found.codes)
        bridged = model.bridge(found.codes[None], found.indices[None].long())
        ids = packed.ids[row][packed.segment[row] >= 0]
        targets = packed.targets[row][: len(ids)]
        after = torch.cat([words, ids[(packed.segment[row] == 1).nonzero()[len(words) :, 0]]])
        assert torch.equal(ids[3 + CODES :], after), "the words that tokens follow are those asked"
        prompt = [embed(ids[:3]), bridged.tokens[0][:WINDOWS], embed(after)]
        logits = model.llm(inputs_embeds=torch.cat(prompt)[None], use_cache=False).logits[0]
        wanted = targets[targets >= 0]
        logits = logits[-len(wanted) :]
        losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        right.append(bool((logits.argmax(1) == wanted).all()))
    scores = model(clips, packed)
    torch.testing.assert_close(scores.loss, torch.stack(losses).mean())
    assert scores.correct.tolist() == right
    assert not torch.allclose(codes[0], codes[1], atol=1e-3), "two questions about one clip"


def test_other_kinds_share_a_row_as_before(cache: Path, tmp_path: Path) -> None:
    grouped = ASKING.model_copy(
        update={"quantizer": CONFIG.quantizer.model_copy(update={"kind": "reducer:resampler"})}
    )
    batch = batch_of(cache, config_for(tmp_path, model=grouped))
    assert batch.clips.asked is None and len(batch.packed.ids) == 2


def test_it_is_trained_kept_and_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the naming lesson on, which has no question."""
    run(config_for(tmp_path / "whole", model=ASKING))
    first, *_, last = log_of(tmp_path / "whole")
    assert "naming" in first and "exact_match" in last["validation"] and last["budget"] == CODES
    run(config_for(tmp_path / "short", model=ASKING, steps=1))
    weights, early = (reducer_weights(tmp_path / name) for name in ("whole", "short"))
    assert all(name.startswith(REDUCER_PREFIX) for name in weights)
    still = {name for name, value in weights.items() if torch.equal(early[name], value)}
    assert not still, "the question's part learns, too"
    quantizer = ReducerWithWeights(ASKING).quantizer
    load_reducer(quantizer, weights)
    kept = weights[f"{REDUCER_PREFIX}text.0.weight"].float()
    assert torch.equal(quantizer.get_parameter("reducer.text.0.weight"), kept)
    expected = load_file(tmp_path / "whole" / STATE)
    found = killed_and_resumed(monkeypatch, config_for(tmp_path / "killed", model=ASKING))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_it_may_start_from_a_model_of_another_kind(tmp_path: Path) -> None:
    run(config_for(tmp_path / "means", steps=1))
    run(config_for(tmp_path / "asking", steps=1, model=ASKING, init=tmp_path / "means"))
    assert log_of(tmp_path / "asking")[-1]["loss"] > 0


# ---- answers from a checkpoint


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, model: VideoLanguageModel) -> Any:
    """A checkpoint of random weights."""
    monkeypatch.setattr(answer, "MAX_TOKENS", 6)
    monkeypatch.setattr(answer, "llm_weights", lambda *_: SimpleNamespace(path=Path("llm")))
    monkeypatch.setattr(answer, "tokenizer_from_gguf", lambda _path, _system: TOKENIZER)
    quantizer = random_backbone(ASKING)
    quantizer.quantizer = model.reducer.quantizer
    encoder, llm = VideoEncoder(quantizer, model.bridge).eval(), tiny_llm()
    return SimpleNamespace(config=ASKING, path=Path(), encoder=lambda: encoder, llm=lambda: llm)


def test_a_checkpoint_answers_every_question_by_its_own_tokens(parts: Any) -> None:
    answerer = CheckpointAnswerer(parts, Any)
    together = replies_of(answerer, CLIP, *QUESTIONS)
    alone = [reply for text in QUESTIONS for reply in replies_of(answerer, CLIP, text)]
    assert together == alone and all(reply.tokens == WINDOWS for reply in together)
    ids = torch.tensor([TOKENIZER.words(QUESTIONS[1])])
    items = [item_of(CLIP, text) for text in QUESTIONS[:2]]
    first, second = (answerer.text_of(item) for item in items)
    assert first is not None and second is not None and not torch.equal(first, second)
    assert torch.equal(second, mean_embeddings(parts.llm(), ids)[0])
    with torch.inference_mode():
        rows = [answerer._rows(item) for item in (*items, items[0])]
    assert (rows[0] - rows[1]).abs().max() > 1e-4 and torch.equal(rows[0], rows[2])
    blind = answerer.perturbed()["blind"]
    assert [reply.tokens for reply in replies_of(blind, CLIP, *QUESTIONS)] == [0, 0, 0]
    with pytest.raises(PromptError, match="the question is empty"):
        replies_of(answerer, CLIP, "What?", " ")
