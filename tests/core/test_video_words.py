"""Words of a video: how they are numbered, spelled and found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.model.word_bridge import WordBridge
from vqedge.video_words import (
    GROWTH_STEPS,
    MOTION_STEPS,
    PLACES,
    SIZES,
    VideoVocabulary,
    vocabulary_of,
)

Array = np.ndarray[Any, Any]
FRAMES, GRID, CODES, LEVELS, ENTRIES, WIDTH = 4, 8, 6, 2, 10, 32
WORDS_CONFIG = AttentionConfig(width=24, heads=3, depth=0, hash="tokens")
CODEBOOK = QuantizerConfig(
    kind="codebook",
    codes=CODES,
    default_budget=CODES,
    levels=LEVELS,
    entries=ENTRIES,
    codebook_width=12,
)
CONFIG = ModelConfig(
    encoder=EncoderConfig(frames=FRAMES, size=GRID * 14),
    quantizer=CODEBOOK,
    attention=WORDS_CONFIG,
    llm=LlmConfig(width=WIDTH),
)
WORDS = VideoVocabulary(LEVELS, ENTRIES, FRAMES)


@pytest.fixture
def bridge() -> WordBridge:
    torch.manual_seed(0)
    made = WordBridge(CONFIG).eval()
    made.name_entries()
    made.finish()
    return made


def clip(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and blobs of them that come, go, move and grow."""
    rng = np.random.default_rng(seed)
    index = np.zeros((FRAMES, GRID, GRID), np.int64)
    for code in range(1, CODES - 1):
        first, last = sorted(rng.integers(0, FRAMES, 2))
        y, x, dy, dx = rng.uniform(0, 6), rng.uniform(0, 6), *rng.uniform(-1, 1, 2)
        for frame in range(first, last + 1):
            side = int(rng.integers(1, 4))
            top, left = (int(np.clip(v, 0, GRID - 1)) for v in (y + dy * frame, x + dx * frame))
            index[frame, top : top + side, left : left + side] = code
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, CODES, 384, generator=generator), torch.from_numpy(index).reshape(1, -1)


def test_every_word_is_spelled_in_one_way() -> None:
    spellings = WORDS.spellings()
    assert len(spellings) == len(set(spellings)) == len(WORDS)
    kinds = (WORDS.code, WORDS.place, WORDS.size, WORDS.span, WORDS.motion)
    assert [kind.first for kind in kinds[1:]] == [kind.end for kind in kinds[:-1]]
    assert WORDS.names == ENTRIES, "no more names than coarse entries"
    assert spellings[WORDS.span.first] == "<|n0t0-0|>"
    assert spellings[WORDS.span.end - 1] == "<|n9t3-3|>"
    assert spellings[WORDS.place.first + PLACES] == "<|n0x0y1|>"
    assert WORDS.text([0, len(WORDS) - 1]) == "<|v0|><|n9dx3dy3|>"
    assert vocabulary_of(CONFIG) == WORDS
    assert vocabulary_of(ModelConfig()) is None


def by_hand(index_map: Array, code: int) -> list[str]:
    """The four words of a code's token hash, from patch positions alone."""
    frames = [np.argwhere(frame == code) for frame in index_map]
    seen = [number for number, patches in enumerate(frames) if len(patches)]
    middles = np.array([(frames[n].mean(0) + 0.5) * 2 / GRID - 1 for n in seen])  # y, x
    sizes = np.array([np.sqrt(len(frames[n]) / GRID**2) * 4 for n in seen])
    times = (np.array(seen) + 0.5) * 2 / FRAMES

    def slope(values: Array) -> float:
        if len(seen) < 2:
            return 0.0
        return float(np.polyfit(times, values, 1)[0])

    def step(value: float, most: int) -> int:
        return int(np.clip(np.round(np.sign(value) * abs(value) ** 0.75 * most), -most, most))

    y, x = (int(min((value + 1) / 2 * PLACES, PLACES - 1)) for value in middles.mean(0))
    dy, dx = (step(slope(middles[:, axis]), MOTION_STEPS) for axis in (0, 1))
    size = int(np.clip(np.floor(4 * np.log2(sizes.mean() / 4 * 16)), 0, SIZES - 1))
    rate = slope(sizes) / sizes.mean()
    growth = int(np.clip(np.round(rate * 4), -GROWTH_STEPS, GROWTH_STEPS))
    span, motion = f"t{seen[0]}-{seen[-1]}", f"dx{dx}dy{dy}"
    return [f"x{x}y{y}", f"s{size}g{growth}", span, motion]


@pytest.mark.parametrize("seed", range(6))
def test_words_of_a_code_are_what_its_patches_say(bridge: WordBridge, seed: int) -> None:
    codes, indices = clip(seed)
    index_map = indices.reshape(FRAMES, GRID, GRID)
    ids = bridge.ids(codes[0], index_map)
    found = bridge.rows(ids, index_map)
    assert found.words is not None and found.row_mask is not None
    spellings = WORDS.spellings()
    groups = found.words.reshape(CODES, WORDS.per_code)
    for code, group in enumerate(groups.tolist()):
        if not (index_map == code).any():
            assert set(group) == {-1}
            continue
        told = [spellings[word] for word in group]
        entries = [f"<|v{level * ENTRIES + int(ids[code, level])}|>" for level in range(LEVELS)]
        name = int(bridge.names[ids[code, 0]])
        told_of = (f"<|n{name}{word}|>" for word in by_hand(index_map.numpy(), code))
        place, size, span, motion = told_of
        assert told == [place, size, span, *entries[:0:-1], motion, entries[0]]


def test_rows_are_looked_up_and_the_same_as_in_training(bridge: WordBridge) -> None:
    codes, indices = clip(3)
    index_map = indices.reshape(FRAMES, GRID, GRID)
    trained = bridge(codes, indices)
    stored = bridge.rows(bridge.ids(codes[0], index_map), index_map)
    assert stored.row_mask is not None and stored.words is not None
    torch.testing.assert_close(trained.tokens[0], stored.tokens, atol=1e-6, rtol=0)
    assert torch.equal(trained.mask[0], stored.row_mask)
    used = stored.row_mask
    assert torch.equal(stored.tokens[used], bridge.table[stored.words[used].long()])
    lengths = stored.tokens[used].norm(dim=1)
    torch.testing.assert_close(lengths, bridge.scale.detach().expand_as(lengths))


def test_numbers_of_codes_say_nothing(bridge: WordBridge) -> None:
    codes, indices = clip(4)
    order = torch.randperm(CODES, generator=torch.Generator().manual_seed(1))
    renumbered = order.argsort()[indices]
    plain = bridge(codes, indices).tokens[0].reshape(CODES, -1)
    other = bridge(codes[:, order], renumbered).tokens[0].reshape(CODES, -1)
    assert torch.equal(other, plain[order])


def test_every_part_learns_but_the_projection_only_past_the_codebook(bridge: WordBridge) -> None:
    codes, indices = clip(5)
    bridge.train()
    bridge(codes, indices).tokens.square().mul(torch.arange(WIDTH)).sum().backward()
    learnt = {name for name, p in bridge.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"codebook.tables", "entry.weight", "hashes.3.weight", "projector.weight"} <= learnt
    assert "codebook.narrow.weight" not in learnt
    bridge.unquantised(codes, indices).mul(torch.arange(WIDTH)).sum().backward()
    narrow = bridge.codebook.narrow
    assert narrow is not None and narrow.weight.grad is not None and narrow.weight.grad.any()


@pytest.mark.parametrize(
    "parts",
    [
        {"quantizer": QuantizerConfig()},
        {"attention": AttentionConfig(hash="tokens", depth=1)},
        {"attention": AttentionConfig(hash="tokens", depth=0, blind=True)},
    ],
)
def test_what_does_not_go_with_words(parts: dict[str, Any]) -> None:
    base = {"quantizer": CODEBOOK, "attention": WORDS_CONFIG}
    with pytest.raises(ValidationError, match="tokens"):
        ModelConfig(**base | parts)
