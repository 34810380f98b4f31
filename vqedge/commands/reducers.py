"""`vqedge eval --reducers`: reducers through one checkpoint's bridge, and trained ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.budget import ADAPTIVE, budget_from_text, codes_from_budget
from vqedge.checkpoint import CONFIG, model_config_of, steps_of
from vqedge.commands.baselines import opened_checkpoint
from vqedge.commands.frames import require_all_read
from vqedge.commands.measured import machine, model_of_checkpoint, versions
from vqedge.commands.output import json_result, result, say
from vqedge.config import QuantizerConfig
from vqedge.data.suites import Item, suite_items, suite_version
from vqedge.errors import UsageError, VideoError, VqedgeError, VqtError
from vqedge.evaluate import EvalReport, evaluate
from vqedge.reducers import (
    PREFIX,
    TRAINABLE,
    TRAINING_FREE,
    follows_question,
    has_room,
    reads_attention,
    reducer_of,
    require_room,
)

if TYPE_CHECKING:
    from torch import nn

    from vqedge.model.answer import CheckpointAnswerer
    from vqedge.model.reduced_answer import ReducedAnswerer, SharedPatches

OWN = "vqtoken"  # the checkpoint's own quantizer; its row says its kind if that is no k-means
_CLIPS = 5  # that time, memory and error are measured on
_AUTO = "auto"
_TRAINED = Path("runs/reducers")
_KEYS = (
    *("n", "clips", "accuracy", "interval", "by_clip", "failed"),
    *("tokens_mean", "tokdense", "by_kind"),
)

Row = dict[str, Any]
"""Of one reducer at one budget, as scripts read it."""


@dataclass(frozen=True)
class ReducersOptions:
    """Which reducers are evaluated, and on what: see `vqedge eval --help`.

    Attributes:
        names: of the reducers, as users write them.
        checkpoint: whose bridge reads their tokens.
        budget: one or several, as users write them.
        limit: most questions.
        videos: folder of the videos that the suite names.
        trained: folder of the checkpoints that were trained with one, in place of the usual one.
        beside: of every option that says nothing of reducers, whether it was given.

    Raises:
        UsageError: no checkpoint, or such an option.
    """

    names: str
    checkpoint: Path | None
    budget: str | None = None
    limit: int | None = None
    videos: Path | None = None
    trained: Path | None = None
    beside: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no suite makes right, before any file is opened."""
        if odd := [option for option, there in self.beside.items() if there]:
            raise UsageError(
                f"--reducers runs a --checkpoint in PyTorch, every reducer alike: leave out "
                f"{', '.join(odd)}"
            )
        if self.checkpoint is None:
            raise UsageError("--reducers runs in PyTorch: give --checkpoint DIR, as models/tiny")


def names_from_text(text: str) -> list[str]:
    """The reducers that a user asks for: `all`, or names with commas between them.

    Raises:
        UsageError: there is no such reducer.
    """
    known = (OWN, *TRAINING_FREE, *TRAINABLE)
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise UsageError(f"--reducers {name}: choose all, or of {', '.join(known)}")
    return names


def budgets_from_text(text: str | None, quantizer: QuantizerConfig) -> list[int]:
    """Budgets with commas between them, `ADAPTIVE` last; the checkpoint's default without any.

    Args:
        text: as users write it.
        quantizer: the checkpoint's. Where it has one budget, others are for the other reducers.

    Raises:
        UsageError: one is no budget.
        ConfigError: the checkpoint does not have one of them.
    """
    asked = map(budget_from_text, text.split(",") if text else [None])
    found = [
        codes_from_budget(
            budget,
            quantizer.codes,
            quantizer.default_budget,
            adapts=reducer_of(quantizer.kind) is None,
            whose="this checkpoint",
        )
        for budget in asked
    ]
    return sorted(dict.fromkeys(found), key=lambda budget: budget == ADAPTIVE)


def require_adaptive(names: Sequence[str], budgets: Sequence[int]) -> None:
    """See that `auto` was asked for with the one that can tell how many tokens a clip needs.

    Args:
        names: of the reducers.
        budgets: asked for.

    Raises:
        UsageError: it was not.
    """
    if ADAPTIVE in budgets and OWN not in names:
        raise UsageError(f"--budget auto: only {OWN} has it; add it to --reducers, or give numbers")


def with_room(names: Sequence[str], patches: int, leave_out: bool) -> list[str]:
    """Those that can take clips of so many patches; the others are left out, or refused.

    Raises:
        ConfigError: one cannot, and was asked for by name.
    """
    for name in names:
        if not leave_out:
            require_room(name, patches)
        elif not has_room(name, patches):
            say(
                f"{name} is left out: {patches:,} patches are too many to compare all pairs of",
                always=True,
            )
    return [name for name in names if has_room(name, patches)]


def run_reducers(suite: str, *, options: ReducersOptions, as_json: bool = False) -> None:
    """Evaluate and print a row for every reducer and budget.

    Raises:
        UsageError: a reducer or budget that is none.
        ConfigError: a budget that the checkpoint does not have.
        CheckpointError: it is incomplete, or one that was trained is.
        VideoError: clips, questions or reducers failed; all others were asked, and the rows are
            printed.
        VqedgeError: all reducers failed; why the first one did.
    """
    checkpoint = options.checkpoint
    assert checkpoint is not None
    chosen = names_from_text(options.names)
    config = model_config_of(checkpoint)
    chosen = with_room(chosen, config.encoder.patches, leave_out=options.names == "all")
    budgets = budgets_from_text(options.budget, config.quantizer)
    require_adaptive(chosen, budgets)
    items = suite_items(suite, options.limit, options.videos)
    trained = trained_checkpoints(chosen, options.trained or _TRAINED)
    bench = _Bench(checkpoint, suite, items)
    rows = [*bench.drop_in(chosen, budgets), *bench.trained(trained, budgets)]
    if bench.failed and not rows:
        raise VqedgeError(bench.failed[0])
    if as_json:
        json_result(bench.head() | {"rows": rows, "failed": bench.failed})
    else:
        _print_table(rows)
    unread = dict.fromkeys(line for row in rows for line in row["failed"])
    require_all_read([*unread, *bench.failed])


class _Bench:
    """One checkpoint and the clips of a suite, shared by all reducers.

    `failed` fills with why reducers have no rows, or not all.
    """

    def __init__(self, checkpoint: Path, suite: str, items: Sequence[Item]) -> None:
        from vqedge.model.reduced_answer import SharedPatches

        self.suite, self.items, self.failed = suite, items, list[str]()
        self.answerer = opened_checkpoint(checkpoint)
        # now: the files may change while questions are asked
        self.version, self.model = suite_version(suite), model_of_checkpoint(checkpoint)
        self.steps = steps_of(checkpoint)
        self.patches: SharedPatches = SharedPatches(self.answerer)
        self.clips = [next(group) for _, group in groupby(items, key=lambda item: item.clip)]
        self.timed = self._timed()

    def head(self) -> dict[str, Any]:
        """What all rows share."""
        from vqedge.commands.reducer_costs import COSTS_ON

        answerer = self.answerer
        return {
            "suite": self.suite,
            "suite_version": self.version,
            "n": len(self.items),
            "clips": len(self.clips),
            "timed_clips": len(self.timed),
            "model": self.model,
            "checkpoint": {"name": self.model["name"], "steps": self.steps},
            "frames": answerer.frames,
            "tokens_before": answerer.tokens_before,
            "backend": answerer.backend,
            "costs_on": COSTS_ON,
            "machine": machine(),
            "versions": versions(),
        }

    def drop_in(self, names: Sequence[str], budgets: Sequence[int]) -> Iterator[Row]:
        """Rows of reducers whose tokens the checkpoint's bridge reads, though it never saw them."""
        for name in (name for name in names if name not in TRAINABLE):
            yield from self._until_it_fails(f"{name}, drop-in", self._dropped_in(name, budgets))

    def trained(self, found: Mapping[str, Path], budgets: Sequence[int]) -> Iterator[Row]:
        """Rows of checkpoints that were trained with a reducer, by its name."""
        for name, path in found.items():
            yield from self._until_it_fails(f"{name}, trained", self._trained(name, path, budgets))

    def _until_it_fails(self, what: str, rows: Iterator[Row]) -> Iterator[Row]:
        """Those of one reducer; others have theirs whatever becomes of it."""
        try:
            yield from rows
        except VqedgeError as error:
            self.failed.append(f"{what}: {error}")

    def _dropped_in(self, name: str, budgets: Sequence[int]) -> Iterator[Row]:
        config = self.answerer.config.quantizer
        kind = config.kind if name == OWN else PREFIX + name
        row_name = kind if name == OWN and kind != "kmeans" else name
        reduced = self._reduced(self.answerer, kind, self._quantizer(name))
        fixed = [budget for budget in budgets if budget != ADAPTIVE]
        fitting = _fitting(budgets, config) if name == OWN else fixed
        yield from self._rows(row_name, "drop-in", reduced, fitting)

    def _trained(self, name: str, path: Path, budgets: Sequence[int]) -> Iterator[Row]:
        answerer, steps = opened_checkpoint(path), steps_of(path)
        quantizer = answerer.config.quantizer
        reduced = self._reduced(answerer, quantizer.kind, answerer.encoder.quantizer.quantizer)
        for row in self._rows(name, "trained", reduced, _fitting(budgets, quantizer)):
            yield row | {"steps": steps}

    def _rows(
        self,
        name: str,
        protocol: str,
        reduced: Callable[[int], ReducedAnswerer],
        budgets: Sequence[int],
    ) -> Iterator[Row]:
        """Answers and costs at every budget."""
        from vqedge.commands.reducer_costs import Costs

        costs = Costs(reduced(1), self.timed)
        for budget in budgets:
            say(f"{name}, {protocol}, budget {_shown(budget)}")
            report = evaluate(reduced(budget), name, self.items)
            row = _row(name, protocol, budget, report) | costs.at(budget)
            yield row | {"prefill_gflops": self._prefill(report)}

    def _timed(self) -> list[Item]:
        """Questions about the first clips that can be read, whose patches are then there."""
        found, failed = list[Item](), list[VideoError | VqtError]()
        for item in self.clips:
            try:
                self.patches.of(item)
            except (VideoError, VqtError) as error:
                failed.append(error)
                continue
            found.append(item)
            if len(found) == _CLIPS:
                break
        if not found:
            raise VideoError(str(failed[0]))
        return found

    def _quantizer(self, name: str) -> nn.Module:
        from vqedge.model.reducers.registry import named_quantizer

        if name == OWN:
            return self.answerer.encoder.quantizer.quantizer
        return named_quantizer(name, self.answerer.config).to(self.answerer.device).eval()

    def _reduced(
        self, answerer: CheckpointAnswerer, kind: str, quantizer: nn.Module
    ) -> Callable[[int], ReducedAnswerer]:
        """A checkpoint that reads the tokens of a kind of quantizer, at any budget."""
        from vqedge.model.reduced_answer import ReducedAnswerer, SharedPatches

        encoder = answerer.config.encoder
        alike = encoder == self.answerer.config.encoder and not encoder.trained_blocks
        shared = alike or answerer is self.answerer
        patches = self.patches if shared else SharedPatches(answerer)
        return partial(ReducedAnswerer, answerer, patches, quantizer, reads_attention(kind))

    def _prefill(self, report: EvalReport) -> float:
        """GFLOPs of the language model's prefill: template and tokens, without a question."""
        from vqedge.flops import prefill
        from vqedge.model.reducers.measure import decoder_of

        template = len(self.answerer.tokenizer.before_video)
        return prefill(decoder_of(self.answerer.llm), template + round(report.tokens_mean)) / 1e9


def _fitting(budgets: Sequence[int], quantizer: QuantizerConfig) -> Sequence[int]:
    """The budgets that a model takes: no more than its codes, or its only one.

    `ADAPTIVE` is for k-means, whose start has a codebook for every budget.
    """
    if follows_question(quantizer.kind):
        return [quantizer.default_budget]
    least = ADAPTIVE if reducer_of(quantizer.kind) is None else 1
    return [budget for budget in budgets if least <= budget <= quantizer.codes]


def _shown(budget: int) -> int | str:
    """A budget as users write it."""
    return _AUTO if budget == ADAPTIVE else budget


def trained_checkpoints(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Those in sub-folders that were trained with one of these, by its name; says what is missing.

    A second one with the same reducer has its folder's name in brackets behind it.

    Raises:
        CheckpointError: one in the folder is incomplete.
    """
    found: dict[str, Path] = {}
    for path in sorted(file.parent for file in folder.glob(f"*/{CONFIG}")):
        kind = model_config_of(path).quantizer.kind
        name = OWN if kind == "kmeans" else reducer_of(kind)
        if name is not None and name in names:
            found[f"{name} ({path.name})" if name in found else name] = path
    for name in (name for name in names if name not in found):
        kind = f"model.quantizer.kind={'kmeans' if name == OWN else PREFIX + name}"
        command = f"vqedge train recipes/reducers.yaml {kind} -o {folder / name}"
        say(f"{name} was not trained: {command}")
    return found


def _row(name: str, protocol: str, budget: int, report: EvalReport) -> Row:
    document = report.to_dict()
    row = {"reducer": name, "protocol": protocol, "budget": _shown(budget)}
    return row | {key: document[key] for key in _KEYS}


def _print_table(rows: Sequence[Row]) -> None:
    for row in rows:
        low, high = row["interval"]
        line = (
            f"{row['reducer']:<14} {row['protocol']:<8} {row['budget']:>4} "
            f"{row['accuracy']:6.1%} [{low:.1%}, {high:.1%}]  {row['tokens_mean']:5.1f} tokens"
        )
        if "torch_ms" in row:
            times = f"{row['torch_ms']:.0f} / {row['onnx_ms']:.0f} ms"
            line += f"  error {row['error']:.3f}  {times} (PyTorch / ONNX Runtime)"
        result(line)
