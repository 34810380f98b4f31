"""What the scripts that write pages from figures share: reading, tables, telling stale pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
BUDGETS = ("8", "16", "32", "64", "auto")


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
    """One document of docs/measured."""
    document: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return document


def all_measured(pattern: str) -> list[dict[str, Any]]:
    """Every document of docs/measured whose name matches."""
    return [measured(path.stem) for path in sorted(MEASURED.glob(f"{pattern}.json"))]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
    return "\n".join(lines)


def share(document: dict[str, Any], places: int = 1) -> str:
    """An accuracy with its interval."""
    low, high = (f"{bound:.{places}%}" for bound in document["interval"])
    return f"{document['accuracy']:.{places}%} [{low}, {high}]"


def _line(cells: Sequence[object]) -> str:
    return "|" + "|".join(f" {cell} " if cell != "" else " " for cell in cells) + "|"
