"""`vqedge search`: clips of a folder that are like one, the same, or do not have its codes."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqedge.bundle import bundle_or_default, open_bundle
from vqedge.commands.encoded import encoded_clip
from vqedge.commands.output import counted, json_result, result, say
from vqedge.commands.pipe import given_video
from vqedge.commands.session import BEST_HERE, RunsOn
from vqedge.commands.span import check_span
from vqedge.errors import UsageError, printable
from vqedge_runtime.search import (
    Hit,
    Novelty,
    Query,
    Refresh,
    ask_folder,
    duplicates,
    novel,
    similar,
    space_of,
)
from vqedge_runtime.search.folder import require_folder
from vqedge_runtime.stored import number_at, origin_from_path
from vqedge_runtime.video import Span
from vqedge_runtime.vqt import header_for, is_vqt, open_vqt
from vqedge_runtime.vqt.file import vqt_errors

_DUPLICATE, _KNOWN, _KNOWN_ID = 0.9, 0.8, 1.0


@dataclass(frozen=True)
class SearchOptions:
    """What is looked for: see `vqedge search --help`.

    Raises:
        UsageError: two questions at once, or a span that is none.
    """

    duplicates: bool = False
    novel: bool = False
    count: int = 10
    threshold: float | None = None
    span: Span = (None, None)
    runs_on: RunsOn = BEST_HERE

    def __post_init__(self) -> None:
        """Refuse what no file makes right, before any is opened."""
        if self.duplicates and self.novel:
            raise UsageError("--duplicates and --novel are two questions; ask one at a time")
        check_span(self.span)


def run_search(
    query: Path,
    folder: Path,
    bundle: Path | None = None,
    *,
    options: SearchOptions | None = None,
    as_json: bool = False,
) -> None:
    """Print what was found, best first; files of the folder that cannot be read on stderr.

    A query `-` is standard input.

    Raises:
        SearchError: no such folder, or its index cannot be used.
        VideoError: the query cannot be decoded.
        VqtError: the query cannot be read.
    """
    settings = options or SearchOptions()
    require_folder(folder)
    with given_video(query) as given:
        asked = _query(given.path, folder, bundle, settings)
    if settings.novel:
        _run_novel(asked, folder, settings, as_json)
    else:
        _run_hits(asked, folder, settings, as_json)


def _run_hits(query: Query, folder: Path, settings: SearchOptions, as_json: bool) -> None:
    state, hits = ask_folder(folder, lambda index: _hits(index, query, settings), say)
    _say_state(state)
    if as_json:
        json_result({"hits": [_hit_document(hit) for hit in hits], **_state_document(state)})
        return
    if not hits:
        say(_nothing(query, settings))
    for hit in hits:
        result(_hit_line(hit))


def _hits(index: sqlite3.Connection, query: Query, settings: SearchOptions) -> list[Hit]:
    if settings.duplicates:
        least = _DUPLICATE if settings.threshold is None else settings.threshold
        return duplicates(index, query, least, settings.count)
    found = similar(index, query, settings.count)
    if settings.threshold is None:
        return found
    return [hit for hit in found if hit.similarity >= settings.threshold]


def _nothing(query: Query, settings: SearchOptions) -> str:
    if settings.duplicates:
        return "no duplicate"
    if query.codes.ids is not None and not settings.threshold:
        return "no clip of this bundle's kind shares a first id with it"
    if settings.threshold is not None:
        return f"no clip of this bundle's kind with a similarity of {settings.threshold:g}"
    return "no clip of this bundle's kind to compare"


def _run_novel(query: Query, folder: Path, settings: SearchOptions, as_json: bool) -> None:
    default = _KNOWN if query.codes.ids is None else _KNOWN_ID
    below = default if settings.threshold is None else settings.threshold
    state, codes = ask_folder(folder, lambda index: novel(index, query), say)
    new = sorted((item for item in codes if item.match < below), key=lambda item: item.match)
    listed = new[: settings.count]
    _say_state(state)
    if as_json:
        found = {"novel": [_novelty_document(item) for item in listed]}
        json_result({"codes": len(codes), "new": len(new)} | found | _state_document(state))
        return
    say(f"{len(new)} of {len(codes)} codes are new here")
    for item in listed:
        near = f"  nearest {item.match:.3f} in {_name(item.path)}" if item.path else ""
        result(f"code {item.code:<4d}{item.share:7.1%}{near}")


def _query(path: Path, folder: Path, bundle: Path | None, settings: SearchOptions) -> Query:
    if is_vqt(path):
        file = open_vqt(path)
        with vqt_errors(path):
            number = number_at(file, *settings.span)
            codes, origin = file.segment(number).codes, file.header.origin
        place = _place(path, folder)
        return Query(codes, space_of(file.header), origin.sha256, place, number)
    opened = open_bundle(bundle_or_default(bundle))
    budget = opened.manifest.quantizer.default_budget
    _, codes = encoded_clip(path, settings.span, opened, budget, settings.runs_on)
    source = origin_from_path(path).sha256 if settings.duplicates else Query.source
    return Query(codes, space_of(header_for(opened.manifest, budget)), source)


def _place(path: Path, folder: Path) -> bytes | None:
    """The name that the index has for the query, if it lies in the folder or is a link to there."""
    root = folder.resolve()
    for whole in (path.parent.resolve() / path.name, path.resolve()):
        if whole.is_relative_to(root):
            return os.fsencode(whole.relative_to(root))
    return None


def _say_state(state: Refresh) -> None:
    there = f"{counted(state.clips, 'clip')} in {counted(state.files, 'file')}"
    say(f"{there}; {state.read} read anew, {state.gone} gone")
    for _, error in state.bad:
        say(f"left out: {error}", always=True)


def _state_document(state: Refresh) -> dict[str, Any]:
    bad = [{"path": os.fsdecode(path), "error": error} for path, error in state.bad]
    facts = {"files": state.files, "clips": state.clips, "read": state.read, "gone": state.gone}
    return {"index": facts, "left_out": bad}


def _hit_document(hit: Hit) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": os.fsdecode(hit.path),
        "segment": hit.segment,
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "similarity": hit.similarity,
    }
    if hit.alignment is not None:
        document |= {"alignment": hit.alignment, "same_source": hit.same_source}
    return document


def _novelty_document(item: Novelty) -> dict[str, Any]:
    path = None if item.path is None else os.fsdecode(item.path)
    return {"code": item.code, "share": item.share, "match": item.match, "nearest": path}


def _hit_line(hit: Hit) -> str:
    score = hit.similarity if hit.alignment is None else hit.alignment
    note = "  same source" if hit.same_source else ""
    return f"{score:.4f}  {_name(hit.path)}  {hit.start_s:.2f}-{hit.end_s:.2f} s{note}"


def _name(path: bytes | None) -> str:
    return printable(os.fsdecode(path or b""))
