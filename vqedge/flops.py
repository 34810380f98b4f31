"""FLOPs by formula: what a clip costs in a vision transformer and in a decoder.

A multiplication and its addition are two. Matrix products only: norms, softmax and activations are
left out. Attention is counted over the whole square, as runtimes without a causal kernel do it.

The last three functions count methods that work inside of the decoder. No reducer here runs them,
because llama.cpp loads fixed architectures: docs/reducers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Transformer:
    """Sizes of a decoder or of a vision transformer.

    Attributes:
        layers: how many.
        width: of a token.
        ffn: inner width of the feed-forward part.
        kv_width: of keys and of values; less than `width` where heads share them.
        gated: the feed-forward part has three matrices instead of two.
        vocabulary: rows of the output matrix, 0 without one.
    """

    layers: int
    width: int
    ffn: int
    kv_width: int
    gated: bool = True
    vocabulary: int = 0


def layer(model: Transformer, tokens: int, context: int) -> int:
    """One layer: `tokens` new ones that attend to `context`, themselves included."""
    projections = 2 * tokens * model.width * (2 * model.width + 2 * model.kv_width)
    attention = 4 * tokens * context * model.width
    matrices = 3 if model.gated else 2
    return projections + attention + 2 * tokens * model.width * model.ffn * matrices


def prefill(model: Transformer, tokens: int) -> int:
    """All layers over a prompt, and the output matrix for its last token."""
    return model.layers * layer(model, tokens, tokens) + 2 * model.width * model.vocabulary


def decode(model: Transformer, context: int) -> int:
    """One more token after `context` others."""
    return model.layers * layer(model, 1, context + 1) + 2 * model.width * model.vocabulary


def vision(model: Transformer, frames: int, patches: int, patch_values: int) -> int:
    """A vision transformer with a CLS token on every frame; `patch_values` numbers in a patch."""
    embedding = 2 * patches * patch_values * model.width
    return frames * (embedding + model.layers * layer(model, patches + 1, patches + 1))


def nearest_codebook(rows: int, codes: int, width: int) -> int:
    """Every row compared with every code."""
    return 2 * rows * codes * width


def kmeans(patches: int, codes: int, width: int, rounds: int) -> int:
    """VQToken's: the farthest-first start, then rounds of assigning and averaging."""
    start = 2 * patches * width * codes
    means = (rounds + 1) * 2 * patches * codes * width
    return start + (rounds + 1) * nearest_codebook(patches, codes, width) + means


def mixture_of_depths(
    model: Transformer, text: int, video: int, keep: float = 0.2, every: int = 2
) -> int:
    """Prefill of VideoLLM-MoD: every second layer works on a share of the video's tokens only.

    Args:
        model: the decoder.
        text: tokens of the prompt that are words.
        video: tokens of the prompt that are not.
        keep: share of the video's tokens that such a layer keeps.
        every: one layer of this many skips; a scorer of one column chooses.
    """
    skipping = model.layers // every
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


def kv_bytes(model: Transformer, tokens: int, bytes_a_value: int = 2) -> int:
    """The cache of keys and values; MustDrop's decoding stage keeps the last stage's tokens."""
    return 2 * model.layers * tokens * model.kv_width * bytes_a_value


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
