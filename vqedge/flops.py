"""FLOPs by formula: what a clip costs in a decoder.

A multiplication and its addition are two. Matrix products only: norms, softmax and activations are
left out. Attention is counted over the whole square, as runtimes without a causal kernel do it.

From `mixture_of_depths` on, methods are counted that work inside of the decoder. No reducer here
runs them, because llama.cpp loads fixed architectures: docs/reducers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Transformer:
    """Sizes of a decoder.

    Attributes:
        layers: how many.
        width: of a token.
        ffn: inner width of the feed-forward part, which is three matrices.
        kv_width: of keys and of values; less than `width` where heads share them.
        vocabulary: rows of the output matrix.
    """

    layers: int
    width: int
    ffn: int
    kv_width: int
    vocabulary: int


def layer(model: Transformer, tokens: int, context: int) -> int:
    """One layer: `tokens` new ones that attend to `context`, themselves included."""
    projections = 2 * tokens * model.width * (2 * model.width + 2 * model.kv_width)
    attention = 4 * tokens * context * model.width
    return projections + attention + 2 * tokens * model.width * model.ffn * 3


def prefill(model: Transformer, tokens: int) -> int:
    """All layers over a prompt, and the output matrix for its last token."""
    return model.layers * layer(model, tokens, tokens) + 2 * model.width * model.vocabulary


def nearest_codebook(rows: int, codes: int, width: int) -> int:
    """Every row compared with every code."""
    return 2 * rows * codes * width


def mixture_of_depths(model: Transformer, text: int, video: int, keep: float = 0.2) -> int:
    """Prefill of VideoLLM-MoD: every second layer works on a share of the video's tokens only.

    Which tokens, a scorer of one column chooses.

    Args:
        model: the decoder.
        text: tokens of the prompt that are words.
        video: tokens of the prompt that are not.
        keep: share of the video's tokens that such a layer keeps.
    """
    skipping = model.layers // 2
    kept = text + math.ceil(keep * video)
    short = layer(model, kept, kept) + 2 * video * model.width
    long = layer(model, text + video, text + video)
    output = 2 * model.width * model.vocabulary
    return skipping * short + (model.layers - skipping) * long + output


def staged_dropping(
    model: Transformer, text: int, video: int, stages: Sequence[tuple[int, int]]
) -> int:
    """Prefill of MustDrop: video tokens are dropped on the way.

    Args:
        model: the decoder.
        text: tokens of the prompt that are words.
        video: tokens of the prompt that are not.
        stages: layers, ascending, and how many of the video's tokens go on from there.
    """
    left = dict(stages)
    total = 2 * model.width * model.vocabulary
    for number in range(model.layers):
        video = left.get(number, video)
        total += layer(model, text + video, text + video)
    return total


def kv_bytes(model: Transformer, tokens: int) -> int:
    """The cache of keys and values, two bytes a number.

    MustDrop's decoding stage keeps the last stage's tokens.
    """
    return 2 * model.layers * tokens * model.kv_width * 2


def cross_attended(model: Transformer, text: int, pooled: int, patches: int, every: int = 4) -> int:
    """Prefill of CrossLMM: few pooled tokens, which look at all patches every few layers.

    Pooled tokens and text each have queries, keys and values of their own for it.

    Args:
        model: the decoder.
        text: tokens of the prompt that are words.
        pooled: tokens of the prompt that are the video.
        patches: what they look at.
        every: one layer of this many has both cross-attentions.
    """
    queries = 2 * (text + pooled) * model.width**2
    memory = 2 * (2 * 2 * patches * model.width**2)
    attention = 4 * (text + pooled) * patches * model.width
    extra = model.layers // every * (queries + memory + attention)
    return prefill(model, text + pooled) + extra
