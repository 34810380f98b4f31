"""One checkpoint's answers with other reducers in the place of its own; all else is shared."""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import Tensor, nn

from vqedge.data.suites import Item, frames_of
from vqedge.model.answer import CheckpointAnswerer

MOST_BYTES: Final = 1 << 30


class SharedPatches:
    """Features of clips with CLS attention beside them, encoded once for all reducers.

    The first clips are kept, as many as there is room for; the others are encoded every time: every
    reducer goes through all clips in turn, so that the latest would be gone before their next turn.

    Args:
        answerer: whose backbone looks.
        most_bytes: room for what is kept.
    """

    def __init__(self, answerer: CheckpointAnswerer, most_bytes: int = MOST_BYTES) -> None:
        self.answerer, self.most_bytes = answerer, most_bytes
        self._known: dict[object, Tensor] = {}

    @torch.inference_mode()
    def of(self, item: Item) -> Tensor:
        """Float `[N, D + 1]` of an item's clip, attention last."""
        if item.clip in self._known:
            return self._known[item.clip]
        answerer, size = self.answerer, self.answerer.config.encoder.size
        frames = frames_of(item.clip, answerer.frames, size, answerer.read)
        vit = answerer.encoder.quantizer.vit
        both: Tensor = vit(torch.from_numpy(frames).to(answerer.device), True).flatten(0, 1)
        if (len(self._known) + 1) * both.nbytes <= self.most_bytes:
            self._known[item.clip] = both
        return both


class ReducedAnswerer(CheckpointAnswerer):
    """A checkpoint whose bridge reads another reducer's tokens.

    Args:
        answerer: the checkpoint's own.
        patches: of the clips.
        quantizer: takes features, or with attention if `attended`, a budget, and a question or None
            to codes.
        attended: it reads the attention.
        budget: most tokens.
    """

    def __init__(
        self,
        answerer: CheckpointAnswerer,
        patches: SharedPatches,
        quantizer: nn.Module,
        attended: bool,
        budget: int,
    ) -> None:
        self.__dict__.update(copy.copy(answerer).__dict__)
        self.patches, self.quantizer, self.attended = patches, quantizer, attended
        self.budget = budget

    def seen(self, item: Item) -> Tensor:
        """What the quantizer reads of an item's clip."""
        both = self.patches.of(item)
        return both if self.attended else both[:, :-1].contiguous()

    def _rows(self, item: Item) -> Tensor:
        budget = torch.tensor(self.budget, device=self.device)
        found = self.quantizer(self.seen(item), budget, self.text_of(item))
        return self.encoder.encoded(found).read
