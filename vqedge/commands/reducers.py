"""`vqedge eval --reducers`: reducers through one checkpoint's bridge, and trained ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.checkpoint import CONFIG, model_config_of
from vqedge.commands.baselines import opened_checkpoint, steps_of
from vqedge.commands.output import json_result, result, say
from vqedge.data.suites import Item, suite_items, suite_version
from vqedge.errors import ConfigError
from vqedge.evaluate import EvalReport, evaluate
from vqedge.reducers import ATTENTION, PREFIX, TRAINABLE, TRAINING_FREE, reducer_of
from vqedge_runtime.cores import processor_name, usable_cores

if TYPE_CHECKING:
    from torch import nn

    from vqedge.model.answer import CheckpointAnswerer
    from vqedge.model.reduced_answer import ReducedAnswerer, SharedPatches

OWN = "vqtoken"  # the row of the checkpoint's own quantizer
_CLIPS = 5  # that time, memory and error are measured on
_RUNS = 5
_KEYS = ("n", "accuracy", "interval", "tokens_mean", "tokdense", "by_kind")
_TOOLS = ("torch", "onnxruntime", "transformers")


def names_from_text(text: str) -> list[str]:
    """The reducers that a user asks for: `all`, or names with commas between them.

    Raises:
        ConfigError: there is no such reducer.
    """
    known = (OWN, *TRAINING_FREE, *TRAINABLE)
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise ConfigError(f"--reducers {name}: choose all, or of {', '.join(known)}")
    return names


def budgets_from_text(text: str | None, codes: int, default: int) -> list[int]:
    """Numbers of tokens with commas between them; the checkpoint's default without any.

    Raises:
        ConfigError: one is no number, or more than the checkpoint's codes.
    """
    try:
        budgets = [int(part) for part in text.split(",")] if text else [default]
    except ValueError:
        raise ConfigError(f"--budget {text}: reducers want numbers, as 8,16,32,64") from None
    for budget in budgets:
        if not 1 <= budget <= codes:
            raise ConfigError(f"--budget {budget}: this checkpoint takes 1 to {codes} tokens")
    return budgets


def run_reducers(
    names: str,
    suite: str,
    checkpoint: Path | None,
    *,
    budget: str | None = None,
    limit: int | None = None,
    videos: Path | None = None,
    trained: Path,
    as_json: bool = False,
) -> None:
    """Evaluate and print a row for every reducer and budget; `trained` is a folder of checkpoints.

    Raises:
        ConfigError: no checkpoint, reducer or budget.
    """
    if checkpoint is None:
        raise ConfigError("--reducers runs in PyTorch: give --checkpoint DIR, as models/tiny")
    chosen = names_from_text(names)
    quantizer = model_config_of(checkpoint).quantizer
    budgets = budgets_from_text(budget, quantizer.codes, quantizer.default_budget)
    items = suite_items(suite, limit, videos)
    bench = _Bench(checkpoint, items)
    rows = [*bench.drop_in(chosen, budgets), *bench.trained(chosen, budgets, trained)]
    if as_json:
        json_result(bench.head(suite) | {"rows": rows})
    else:
        _print_table(rows)


class _Bench:
    """One checkpoint and the clips of a suite, shared by all reducers."""

    def __init__(self, checkpoint: Path, items: Sequence[Item]) -> None:
        from vqedge.model.reduced_answer import SharedPatches

        self.items, self.checkpoint = items, checkpoint
        self.answerer = opened_checkpoint(checkpoint)
        self.patches: SharedPatches = SharedPatches(self.answerer)
        self.clips = [next(group) for _, group in groupby(items, key=lambda item: item.clip)]

    def head(self, suite: str) -> dict[str, Any]:
        """What all rows share."""
        answerer = self.answerer
        return {
            "suite": suite,
            "suite_version": suite_version(suite),
            "n": len(self.items),
            "clips": len(self.clips),
            "timed_clips": min(_CLIPS, len(self.clips)),
            "checkpoint": {"name": self.checkpoint.name, "steps": steps_of(self.checkpoint)},
            "frames": answerer.frames,
            "tokens_before": answerer.tokens_before,
            "backend": answerer.backend,
            "machine": f"{processor_name()}, {usable_cores()} cores",
            "versions": {tool: version(tool) for tool in _TOOLS},
        }

    def drop_in(self, names: Sequence[str], budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows of reducers whose tokens the checkpoint's bridge reads, though it never saw them."""
        for name in (name for name in names if name not in TRAINABLE):
            quantizer = self._quantizer(name)
            reduced = self._reduced(self.answerer, name, quantizer)
            run = _exported(quantizer, reduced(1).seen(self.clips[0]))
            for budget in budgets:
                say(f"{name}, budget {budget}")
                report = evaluate(reduced(budget), name, self.items)
                row = _row(name, "drop-in", budget, report) | self._costs(reduced(budget), run)
                yield row | {"prefill_gflops": self._prefill(report)}

    def trained(
        self, names: Sequence[str], budgets: Sequence[int], folder: Path
    ) -> Iterator[dict[str, Any]]:
        """Rows of the checkpoints in a folder, trained with these reducers; names those missing."""
        found = _checkpoints(names, folder)
        for name in (name for name in names if name not in found):
            kind = f"model.quantizer.kind={'kmeans' if name == OWN else PREFIX + name}"
            command = f"vqedge train recipes/reducers.yaml {kind} -o {folder / name}"
            say(f"{name} was not trained: {command}")
        for name, path in found.items():
            answerer = opened_checkpoint(path)
            reduced = self._reduced(answerer, name, answerer.encoder.quantizer.quantizer)
            for budget in (n for n in budgets if n <= answerer.config.quantizer.codes):
                say(f"{name}, trained, budget {budget}")
                row = _row(name, "trained", budget, evaluate(reduced(budget), name, self.items))
                yield row | {"steps": steps_of(path)}

    def _quantizer(self, name: str) -> nn.Module:
        from vqedge.model.reducers.quantizer import ReducerQuantizer
        from vqedge.model.reducers.registry import make_reducer

        config = self.answerer.config
        if name == OWN:
            return self.answerer.encoder.quantizer.quantizer
        codes, encoder = config.quantizer.codes, config.encoder
        reducer = make_reducer(name, codes, encoder.frames, encoder.grid, encoder.width)
        return ReducerQuantizer(reducer, codes, encoder.frames).to(self.answerer.device).eval()

    def _reduced(
        self, answerer: CheckpointAnswerer, name: str, quantizer: nn.Module
    ) -> Callable[[int], ReducedAnswerer]:
        """A checkpoint that reads a reducer's tokens, at any budget."""
        from vqedge.model.reduced_answer import ReducedAnswerer, SharedPatches

        alike = answerer.config.encoder == self.answerer.config.encoder
        patches = self.patches if alike else SharedPatches(answerer)
        kind = answerer.config.quantizer.kind
        attended = (reducer_of(kind) if name == OWN else name) in ATTENTION
        return partial(ReducedAnswerer, answerer, patches, quantizer, attended)

    def _costs(self, reduced: ReducedAnswerer, run: Callable[..., Any]) -> dict[str, Any]:
        """Time, memory, error and FLOPs of the reducer alone, medians or means over a few clips."""
        import numpy as np
        import torch

        from vqedge.model.reducers.measure import (
            matrix_flops,
            median_ms,
            peak_mb,
            quantisation_error,
        )

        budget = torch.tensor(reduced.budget, device=reduced.device)
        seen = [reduced.seen(item) for item in self.clips[:_CLIPS]]
        with torch.inference_mode():
            found = [reduced.quantizer(patches, budget) for patches in seen]
            call = lambda: reduced.quantizer(seen[0], budget)  # noqa: E731
            deployed = [run(patches, reduced.budget) for patches in seen]
            features = [patches[:, : found[0].codes.shape[1]] for patches in seen]
            errors = [quantisation_error(*pair) for pair in zip(features, found, strict=True)]
            differ = [
                (there != here.indices.cpu().numpy()).mean()
                for there, here in zip(deployed, found, strict=True)
            ]
            return {
                "error": float(np.mean(errors)),
                "ids_differ": float(np.mean(differ)),
                "torch_ms": median_ms(call, _RUNS),
                "onnx_ms": median_ms(lambda: run(seen[0], reduced.budget), _RUNS),
                "peak_mb": peak_mb(call),
                "reducer_gflops": matrix_flops(call) / 1e9,
            }

    def _prefill(self, report: EvalReport) -> float:
        """Of the language model over the template and the tokens, without a question."""
        from vqedge.flops import prefill
        from vqedge.model.reducers.measure import decoder_of

        template = len(self.answerer.tokenizer.before_video)
        return prefill(decoder_of(self.answerer.llm), template + round(report.tokens_mean)) / 1e9


def _exported(quantizer: nn.Module, patches: Any) -> Callable[..., Any]:
    """The quantizer in ONNX Runtime: from patches and budget to the index map."""
    import numpy as np
    import onnxruntime as ort

    from vqedge_export.onnx_export import quantizer_graph

    model = quantizer_graph(quantizer, patches).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda rows, budget: session.run(
        ["indices"], {"features": rows.cpu().numpy(), "budget": np.array(budget, np.int64)}
    )[0]


def _checkpoints(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Those in sub-folders that were trained with one of these, by its name."""
    found = {}
    for path in sorted(file.parent for file in folder.glob(f"*/{CONFIG}")):
        kind = model_config_of(path).quantizer.kind
        name = OWN if kind == "kmeans" else reducer_of(kind)
        if name is not None and name in names:
            found[name] = path
    return found


def _row(name: str, protocol: str, budget: int, report: EvalReport) -> dict[str, Any]:
    document = report.to_dict()
    row = {"reducer": name, "protocol": protocol, "budget": budget}
    return row | {key: document[key] for key in _KEYS}


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        low, high = row["interval"]
        line = (
            f"{row['reducer']:<14} {row['protocol']:<8} {row['budget']:>3} "
            f"{row['accuracy']:6.1%} [{low:.1%}, {high:.1%}]  {row['tokens_mean']:5.1f} tokens"
        )
        if "torch_ms" in row:
            times = f"{row['torch_ms']:.0f} / {row['onnx_ms']:.0f} ms"
            line += f"  error {row['error']:.3f}  {times} (PyTorch / ONNX Runtime)"
        result(line)
