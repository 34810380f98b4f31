"""How a model does on clips that it is not trained on, a few at a time, and what its codes use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vqedge.model.codebook import usage_report
from vqedge.model.token_hash import token_hash
from vqedge.model.trained_reducer import quantized
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.training.batches import Batches
from vqedge.training.dataset import TrainingClips
from vqedge.training.questions import HeldOut

_CODES_AN_ENTRY = 20


@torch.no_grad()
def exact_match(
    model: VideoLanguageModel,
    clips: TrainingClips,
    asked: Sequence[HeldOut],
    batches: Batches,
    accelerator: Accelerator,
    is_over: Callable[[], bool],
) -> dict[str, float] | None:
    """Exact match by teacher forcing at the default budget, `exact_match` of all and by kind.

    A question of a file that has choices is right where its answer is the likeliest of them.

    Args:
        model: is not changed.
        clips: that are held out.
        asked: about them.
        batches: makes what is read.
        accelerator: the processes, which all do the same.
        is_over: shall it end at once? Asked by all processes, before every batch.

    Returns:
        None if it was over before the last batch.
    """
    correct, likelihood = list[bool](), list[float]()
    with _evaluated(model):
        for batch in batches.held_out(clips, asked):
            if is_over():
                return None
            with accelerator.autocast():
                scores: Scores = model(batch.clips, batch.packed)
            assert scores.likelihood is not None, "the model is not training"
            correct += scores.correct.tolist()
            likelihood += scores.likelihood.tolist()
    hits, first = dict[str, list[bool]](), 0
    for each in asked:
        its = slice(first, first := first + len(each.answers))
        hits.setdefault(each.item.kind, []).append(each.is_right(correct[its], likelihood[its]))
    every = [hit for kind in hits.values() for hit in kind]
    shares = {kind: round(float(np.mean(hits[kind])), 4) for kind in sorted(hits)}
    return {"exact_match": round(float(np.mean(every)), 4), **shares}


@torch.no_grad()
def codebook_usage(
    model: VideoLanguageModel, clips: TrainingClips, budget: int, entries: int
) -> dict[str, Any]:
    """How evenly clips use a learned codebook of so many entries a level; empty without one.

    A few codes cannot meet all entries: some twenty an entry are looked at, where there are.
    """
    codebook = model.bridge.codebook
    if codebook is None:
        return {}
    device, ids = next(model.parameters()).device, list[torch.Tensor]()
    with _evaluated(model):
        for picks in clips.parts():
            coded = quantized(clips.batch(picks, budget).to(device), model.reducer)
            used = token_hash(coded.indices, clips.frames, coded.codes.shape[1]).mask
            ids.append(codebook(coded.codes, used).ids.cpu())
            if sum(map(len, ids)) * budget >= _CODES_AN_ENTRY * entries:
                break
    return {"codebook": usage_report(torch.cat(ids), entries)}


@contextmanager
def _evaluated(model: VideoLanguageModel) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
