"""What is on the page of results of trainings that differ in one part or choice."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from _pages import asked_of, points, share, table

from vqedge.commands.baselines import COMPARISONS

GRID_NAMED = "uniform grid (grid-named)"
DESCRIBED = """
In *captions*, one of the eight questions about every clip asks for a description. The loss is a
mean over the tokens of all answers, so that about half of it is then that of descriptions.
"""


def trained_alike(document: dict[str, Any]) -> dict[str, object]:
    """One short training for the whole model, and again with one part or choice replaced."""
    trained = {name: d for name, d in document["baselines"].items() if "steps" in d}
    known = {comparison.name for comparison in COMPARISONS}
    parts = {name: d for name, d in trained.items() if name.partition(" (")[0] in known}
    choices = {name: d for name, d in trained.items() if name not in parts}
    return {
        "compare_steps": document["steps"],
        "compare_asked": asked_of(document),
        "compare_suite": document["suite_version"],
        "parts": _in_points(document, parts),
        "parts_by_kind": _kinds_beside(document, parts),
        "grid_told": grid_told(document, parts),
        "choices": _in_points(document, choices),
        "choices_told": DESCRIBED if "captions" in choices else "",
    }


def trained_longer(
    vq: dict[str, Any], grid: dict[str, Any], curves: Mapping[str, Mapping[str, float]]
) -> dict[str, object]:
    """Codes and a uniform grid, both named in their lesson, after more steps.

    Args:
        vq: what the bundle with codes answers.
        grid: the same of the one with the grid.
        curves: exact match on watched clips by step, of both in this order.
    """
    names = ("VQ", "uniform grid")
    steps = [*next(iter(curves.values()))]
    rows = (
        (name, *(f"{curve[step]:.0%}" for step in steps))
        for name, curve in zip(names, curves.values(), strict=True)
    )
    others = {names[1]: grid}
    return {
        "long_steps": int(steps[-1]),
        "long_asked": asked_of(vq),
        "long_bundles": f"{vq['backend']['encoder']}, {vq['backend']['llm']}",
        "long": _in_points(vq, others),
        "long_by_kind": _kinds_beside(vq, others),
        "long_curves": table(("step", *steps), rows),
    }


def _in_points(reference: dict[str, Any], others: Mapping[str, dict[str, Any]]) -> str:
    """Trainings beside the one that they are compared with, a row each."""
    rows = [
        (name, f"{d['tokens_mean']:.1f}", share(d), points(d, reference))
        for name, d in others.items()
    ]
    told = ("VQ", f"{reference['tokens_mean']:.1f}", share(reference), "")
    prior = ("prior", "", f"{reference['prior']:.1%}", "")
    return table(("", "tokens", "all", "points from VQ"), [told, *rows, prior])


def _kinds_beside(reference: dict[str, Any], others: Mapping[str, dict[str, Any]]) -> str:
    """The same by kind of question, a column each."""
    kinds = (
        (
            kind,
            *(f"{d['by_kind'][kind]['accuracy']:.0%}" for d in (reference, *others.values())),
            f"{asked['prior']:.0%}",
            asked["n"],
        )
        for kind, asked in reference["by_kind"].items()
    )
    return table(("", "VQ", *others, "prior", "n"), kinds)


def grid_told(document: dict[str, Any], parts: Mapping[str, dict[str, Any]]) -> str:
    """What the grid did not have."""
    below = ", and it stays below the prior" * (
        parts["uniform grid"]["accuracy"] < document["prior"]
    )
    named = (
        f" In *{GRID_NAMED}* one is named by a tenth of it: `optim.naming_share=0.1`."
        if GRID_NAMED in parts
        else ""
    )
    return textwrap.fill(
        "The naming lesson before a training is about codes that lie half on one thing. No cell of "
        "the uniform grid does, so that its row lacks the lesson as well as the codes"
        f"{below}.{named}",
        100,
    )
