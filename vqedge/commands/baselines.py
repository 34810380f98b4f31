"""What a checkpoint is compared with on the same questions: itself shown less, and other trainings.

A trained comparison is a checkpoint in a sub-folder, made by the same recipe with one value of the
model changed (`COMPARISONS`, or any other); its name in the report says how its model differs, or
is that of its folder if it does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vqedge.budget import Budget
from vqedge.checkpoint import (
    CONFIG,
    checkpoint_sha256,
    model_config_of,
    require_same_save,
    steps_of,
)
from vqedge.commands.frames import reader_of
from vqedge.commands.output import result, say
from vqedge.config import Config, ModelConfig
from vqedge.data.suites import Item
from vqedge.evaluate import Answerer, EvalReport, OnItem, PerturbedAnswerer, evaluate

if TYPE_CHECKING:
    from vqedge.model.answer import CheckpointAnswerer


KIND: Final = "quantizer.kind"


@dataclass(frozen=True)
class Comparison:
    """One value of the model's configuration changed, in a folder of its own.

    `training` is what else has to change for its training to be a fair one.
    """

    name: str
    folder: str
    key: str
    value: str | int | bool
    training: tuple[str, ...] = ()

    def command(self, folder: Path) -> str:
        """How to train it, by the recipe of the checkpoint that it is compared with."""
        change = f"model.{self.key}={json.dumps(self.value).strip(chr(34))}"
        changes = " ".join((change, *self.training))
        return f"vqedge train ITS_RECIPE {changes} -o {folder / self.folder}"


COMPARISONS = (
    # a code is named by what half of it lies on, and no cell of a grid lies half on one thing
    Comparison("uniform grid", "grid", KIND, "reducer:uniform-pool", ("optim.naming_share=0.1",)),
    Comparison("random codes", "random", KIND, "reducer:random-prune"),
    Comparison("no hash", "no-hash", "attention.hash", "none"),
    Comparison("no attention", "no-attention", "attention.depth", 0),
    # it has no codes to name
    Comparison("trained blind", "blind", "attention.blind", True, ("optim.naming_steps=0",)),
)


@dataclass(frozen=True)
class Subject:
    """Something to evaluate, opened when its turn comes.

    Attributes:
        name: of its row.
        open: load it.
        steps: of its own training, None where nothing was trained or nobody wrote it down.
    """

    name: str
    open: Callable[[], Answerer]
    steps: int | None = None


def baselines_of(
    answerer: PerturbedAnswerer, checkpoint: Path | None, folder: Path, budget: Budget | None
) -> list[Subject]:
    """All that `answerer` is compared with; see `trained_baselines` for arguments and errors."""
    shown_less = [_opened(name, other) for name, other in answerer.perturbed().items()]
    if checkpoint is None:
        say("blind, and baselines that were trained, need --checkpoint", always=True)
        return shown_less
    return [*shown_less, *trained_baselines(checkpoint, folder, budget)]


def trained_baselines(checkpoint: Path, folder: Path, budget: Budget | None) -> list[Subject]:
    """The checkpoints in sub-folders of `folder`.

    Args:
        checkpoint: what they are compared with.
        folder: holds them; need not be there.
        budget: most tokens a clip, see `vqedge.model.answer`.

    Raises:
        CheckpointError: one of them is incomplete.
        ConfigError: one of them does not have this budget.
    """
    from vqedge.model.answer import checked_budget

    reference = model_config_of(checkpoint)
    found: dict[str, Subject] = {}
    for path in sorted(file.parent for file in folder.glob(f"*/{CONFIG}")):
        config = model_config_of(path)
        checked_budget(config.quantizer, budget, str(path))
        name = difference(config, reference) or path.name
        name = f"{name} ({path.name})" if name in found else name
        steps = steps_of(path)
        if steps != steps_of(checkpoint):
            say(
                f"{path}: trained for {steps} steps, {checkpoint} for {steps_of(checkpoint)}",
                always=True,
            )
        opens = partial(opened_checkpoint, path, budget, checkpoint_sha256(path))
        found[name] = Subject(name, opens, steps)
    for comparison in COMPARISONS:
        if comparison.name not in found:
            say(f"no trained baseline {comparison.name!r}: {comparison.command(folder)}")
    return list(found.values())


def opened_checkpoint(
    path: Path, budget: Budget | None = None, sha256: str | None = None
) -> CheckpointAnswerer:
    """A checkpoint that answers, in PyTorch.

    Args:
        path: the checkpoint.
        budget: most tokens a clip; its own by default.
        sha256: the digest that it must have; any by default.

    Raises:
        CheckpointError: it is incomplete, or was saved anew.
        ConfigError: it does not have this budget.
    """
    config = model_config_of(path)
    from vqedge.model.answer import CheckpointAnswerer
    from vqedge.model.checkpoint import open_checkpoint

    answerer = CheckpointAnswerer(open_checkpoint(path), reader_of(config.encoder), budget)
    if sha256 is not None:
        require_same_save(path, sha256)
    return answerer


def difference(config: ModelConfig, reference: ModelConfig) -> str:
    """How a configuration differs from another one, in words if that is a known comparison.

    Empty if it does not: it was trained in another way.
    """
    ours, theirs = _flat(config), _flat(reference)
    changes = {key: value for key, value in ours.items() if value != theirs.get(key)}
    for comparison in COMPARISONS:
        if changes == {comparison.key: comparison.value}:
            return comparison.name
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def report_of(subject: Subject, suite: str, items: Sequence[Item], on_item: OnItem) -> EvalReport:
    """The suite through one of them; the report says its `steps` where they are known."""
    report = evaluate(subject.open(), suite, items, on_item)
    steps = {} if subject.steps is None else {"steps": subject.steps}
    return replace(report, extra={**report.extra, **steps})


def print_comparison(reports: Mapping[str, EvalReport]) -> None:
    """One line a report, then accuracy by kind with a column each, empty where one has no such."""
    documents = {name: report.to_dict() for name, report in reports.items()}
    for name, document in documents.items():
        low, high = document["interval"]
        steps = f", {document['steps']} steps" if "steps" in document else ""
        share = f"{document['accuracy']:6.1%} [{low:.1%}, {high:.1%}]"
        result(f"{name:<24} {share}  {document['tokens_mean']:.1f} tokens{steps}")
    result(" " * 12 + "".join(f"  {name:>7}" for name in documents))
    for kind in sorted({kind for document in documents.values() for kind in document["by_kind"]}):
        cells = (
            f"  {_share(document['by_kind'].get(kind)):>{max(len(name), 7)}}"
            for name, document in documents.items()
        )
        result(f"{kind:<12}{''.join(cells)}".rstrip())


def _share(row: Mapping[str, Any] | None) -> str:
    return f"{row['accuracy']:.1%}" if row else ""


def _opened(name: str, answerer: Answerer) -> Subject:
    return Subject(name, lambda: answerer)


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; what files leave out, because a model does without, is there."""
    flat: dict[str, Any] = {}
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, Config):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
