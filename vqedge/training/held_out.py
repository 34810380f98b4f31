"""How a model does on clips that it is not trained on, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vqedge.data.training import TrainingClips
from vqedge.model.codebook import usage_report
from vqedge.model.quantizing import quantized
from vqedge.model.vlm import VideoLanguageModel
from vqedge.training.batches import Batches


@torch.no_grad()
def exact_match(
    model: VideoLanguageModel, clips: TrainingClips, batches: Batches, accelerator: Accelerator
) -> dict[str, float]:
    """Exact match by teacher forcing at the default budget, `exact_match` of all and by kind."""
    hits: dict[str, list[float]] = {}
    with _evaluated(model):
        for picks in clips.parts():
            batch = batches.held_out(clips, picks)
            with accelerator.autocast():
                scores = model(batch.clips, batch.packed)
            for kind, hit in zip(batch.kinds, scores.correct.tolist(), strict=True):
                hits.setdefault(kind, []).append(hit)
    every = [hit for kind in hits.values() for hit in kind]
    shares = {kind: round(float(np.mean(hits[kind])), 4) for kind in sorted(hits)}
    return {"exact_match": round(float(np.mean(every)), 4), **shares}


@torch.no_grad()
def codebook_usage(
    model: VideoLanguageModel, clips: TrainingClips, budget: int, entries: int
) -> dict[str, Any]:
    """How evenly clips use a learned codebook of so many entries a level; empty without one."""
    if model.bridge.codebook is None:
        return {}
    device, ids = next(model.parameters()).device, []
    with _evaluated(model):
        for picks in clips.parts():
            coded = quantized(clips.batch(picks, budget).to(device), model.reducer)
            ids.append(model.bridge(*coded).ids)
    return {"codebook": usage_report(torch.cat(ids), entries)}


@contextmanager
def _evaluated(model: VideoLanguageModel) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
