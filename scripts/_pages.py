"""What the scripts that write pages from figures share: reading, tables, telling stale pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vqedge.checkpoint import checkpoint_sha256
from vqedge.intervals import paired_interval

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
BUDGETS = ("8", "16", "32", "64", "auto")
LONG = ("compare_long_vq", "compare_long_grid", "compare_long_curves")
_TRAINED_ELSEWHERE = "compare"  # documents of models that are not kept


def write_or_compare(page: Path, fresh: str, arguments: Sequence[str]) -> int:
    """Write a page with `--write` among the arguments; else say whether it is as it would be.

    Returns:
        the exit status.
    """
    if "--write" in arguments:
        page.write_text(fresh, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != fresh:
        name = page.relative_to(ROOT).as_posix()
        script = Path(sys.argv[0]).name
        sys.stderr.write(f"{name}: differs from docs/measured; run scripts/{script} --write\n")
        return 1
    return 0


def measured(name: str) -> dict[str, Any]:
    """One document of docs/measured.

    Raises:
        ValueError: it tells of another checkpoint than the one that lies in models today.
    """
    document: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    told = document.get("model", {}).get("checkpoint_sha256")  # which older documents do not say
    model = "tiny-words" if name.startswith("words") else "tiny"
    if told is not None and not name.startswith(_TRAINED_ELSEWHERE) and told != _today(model):
        raise ValueError(f"{name}.json: is not of models/{model} as it is today; measure it again")
    return document


@cache
def _today(model: str) -> str:
    return checkpoint_sha256(ROOT / "models" / model)


def all_measured(pattern: str) -> list[dict[str, Any]]:
    """Every document of docs/measured whose name matches."""
    return [measured(path.stem) for path in sorted(MEASURED.glob(f"{pattern}.json"))]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
    return "\n".join(lines)


def asked_of(document: dict[str, Any]) -> str:
    """How many questions and clips a figure is of."""
    return f"{document['n']:,} questions about {document['clips']} clips"


def share(document: dict[str, Any], places: int = 1) -> str:
    """An accuracy with its interval."""
    low, high = (f"{bound:.{places}%}" for bound in document["interval"])
    return f"{document['accuracy']:.{places}%} [{low}, {high}]"


def points(document: dict[str, Any], reference: dict[str, Any]) -> str:
    """Percentage points from another on the same questions, with the interval of the difference.

    Without an interval where the documents do not say how many were right about each clip; nothing
    from itself.
    """
    if document is reference:
        return ""
    difference = document["accuracy"] - reference["accuracy"]
    ours, theirs = (each.get("by_clip", {}) for each in (document, reference))
    if not ours or ours["asked"] != theirs.get("asked"):
        return _signed(difference)
    _, low, high = paired_interval(ours["right"], theirs["right"], ours["asked"])
    return f"{_signed(difference)} [{_signed(low)}, {_signed(high)}]"


def _signed(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # never -0.0


def _line(cells: Sequence[object]) -> str:
    return "|" + "|".join(f" {cell} " if cell != "" else " " for cell in cells) + "|"
