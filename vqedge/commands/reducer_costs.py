"""What a reducer of `vqedge eval --reducers` costs, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from vqedge.data.suites import Item
from vqedge.model.reducers.measure import matrix_flops, median_ms, peak_mb, quantisation_error
from vqedge_export.onnx_export import quantizer_graph

if TYPE_CHECKING:
    from vqedge.model.reduced_answer import ReducedAnswerer

COSTS_ON = "cpu"  # wherever answers come from: ONNX Runtime's side and the memory are the CPU's
_RUNS = 5


class Costs:
    """What a quantizer alone costs and loses on a few clips, on the CPU.

    Args:
        reduced: reads its tokens, on whatever device.
        clips: a question about each.
    """

    def __init__(self, reduced: ReducedAnswerer, clips: Sequence[Item]) -> None:
        self.quantizer = copy.deepcopy(reduced.quantizer).to(COSTS_ON)
        self.unit_means = reduced.config.quantizer.unit_means
        self.seen = [_on_cpu(reduced, item) for item in clips]
        self.run = _exported(self.quantizer, *self.seen[0])

    def at(self, tokens: int) -> dict[str, Any]:
        """Time, memory, error and FLOPs at a budget, medians or means over the clips."""
        budget, seen = torch.tensor(tokens), self.seen
        with torch.inference_mode():
            found = [self.quantizer(patches, budget, text) for patches, text in seen]
            call = lambda: self.quantizer(seen[0][0], budget, seen[0][1])  # noqa: E731
            deployed = [self.run(tokens, *both) for both in seen]
            errors = [
                quantisation_error(patches[:, : codes.codes.shape[1]], codes, self.unit_means)
                for (patches, _), codes in zip(seen, found, strict=True)
            ]
            differ = [
                (there != here.indices.numpy()).mean()
                for there, here in zip(deployed, found, strict=True)
            ]
            return {
                "error": float(np.mean(errors)),
                "ids_differ": float(np.mean(differ)),
                "torch_ms": median_ms(call, _RUNS),
                "onnx_ms": median_ms(lambda: self.run(tokens, *seen[0]), _RUNS),
                "peak_mb": peak_mb(call),
                "reducer_gflops": matrix_flops(call) / 1e9,
            }


def _on_cpu(reduced: ReducedAnswerer, item: Item) -> tuple[Tensor, Tensor | None]:
    """What a quantizer reads: the clip's patches, and the question where it follows one."""
    text = reduced.text_of(item)
    return reduced.seen(item).to(COSTS_ON), None if text is None else text.to(COSTS_ON)


def _exported(quantizer: nn.Module, patches: Tensor, text: Tensor | None) -> Callable[..., Any]:
    """The quantizer in ONNX Runtime: from budget, patches and a question to the index map."""
    model = quantizer_graph(quantizer, patches, text).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(budget: int, rows: Tensor, asked: Tensor | None) -> Any:
        feeds = {"features": rows.numpy(), "budget": np.array(budget, np.int64)}
        feeds |= {} if asked is None else {"text": asked.numpy()}
        return session.run(["indices"], feeds)[0]

    return run
