"""A run's metrics as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

CURVES = "curves.png"


def draw_curves(log: Path, picture: Path) -> None:
    """Loss and exact match against steps, from a run's `metrics.jsonl`; of lessons, too."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record and "step" in record]
    if not steps:
        return
    lessons = [record for record in records if "lesson" in record]
    figure = Figure(figsize=(13.5 if lessons else 9, 3.5), layout="constrained")
    loss, match, *other = figure.subplots(1, 3 if lessons else 2)
    for name in dict.fromkeys(record["lesson"] for record in lessons):
        mine = [record for record in lessons if record["lesson"] == name]
        places, losses = [r["lesson_step"] for r in mine], [r["loss"] for r in mine]
        _plot(other[0], "loss before the first step", places, losses, name)
        other[0].legend()
    _plot(loss, "loss", [record["step"] for record in steps], [r["loss"] for r in steps])
    running = [record["exact_match"] for record in steps]
    _plot(match, "exact match", [record["step"] for record in steps], running, "training")
    held_out = [record for record in steps if "validation" in record]
    match.plot(
        [record["step"] for record in held_out],
        [record["validation"]["exact_match"] for record in held_out],
        "o-",
        label="held out",
    )
    match.set_ylim(0, 1)
    match.legend()
    figure.savefig(picture, dpi=110)


def _plot(axes: Any, title: str, x: list[int], y: list[float], label: str = "") -> None:
    axes.plot(x, y, linewidth=0.8, alpha=0.7, label=label)
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
