"""`vqedge import`: a Hugging Face folder or repository becomes a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.choices import chosen
from vqedge.commands.output import json_result, result, say
from vqedge.errors import CheckpointError
from vqedge.progress import byte_progress
from vqedge.reducers import training_free_kind

if TYPE_CHECKING:
    from vqedge_export.hf.importing import Imported

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def run_import(
    source: str,
    out: Path,
    *,
    mode: str | None = None,
    frames: int | None = None,
    block: int | None = None,
    size: int | None = None,
    reducer: str | None = None,
    revision: str = "main",
    as_json: bool = False,
) -> None:
    """Import a source and say what was taken, what was not, and what comes next.

    Raises:
        CheckpointError: see `checkpoint_from_folder`, or there is no such source.
        ConfigError: see there.
        UsageError: no such mode or reducer.
        FetchError: the hub cannot be reached, or refuses.
    """
    from vqedge_export.hf.importing import DEFAULT_FRAMES, checkpoint_from_folder, require_absent
    from vqedge_export.hf.llava import MODES

    if mode is not None:
        chosen("--mode", mode, MODES)  # before anything is downloaded
    if reducer is not None:
        training_free_kind(reducer)
    require_absent(out)
    folder, name, commit = _folder_of(source, revision)
    say(f"importing {folder}")
    imported = checkpoint_from_folder(
        folder,
        out,
        mode=mode,
        frames=frames or DEFAULT_FRAMES,
        block=block,
        size=size,
        reducer=reducer,
        name=name,
        revision=commit,
    )
    if imported.ignored:
        say(f"not needed, left out: {', '.join(imported.ignored)}")
    if as_json:
        json_result(_document(imported, out, commit))
    else:
        _tell(imported, out)


def _document(imported: Imported, out: Path, commit: str | None) -> dict[str, Any]:
    config = imported.config
    return {
        "checkpoint": str(out),
        "encoder": config.encoder.source,
        "quantizer": config.quantizer.kind,
        "attention": config.attention.kind,
        "ignored": list(imported.ignored),
        "files": _sizes(out),
        "revision": commit,
    }


def _tell(imported: Imported, out: Path) -> None:
    for path, size in _sizes(out).items():
        say(f"{size / 1e6:9.1f} MB  {path}")
    if imported.config.attention.kind == "paper":
        say(
            "its VQ-Attention is new and knows nothing: train it (docs/bring-your-checkpoint.md)",
            always=True,
        )
    if imported.memory_note:
        say(imported.memory_note)
    say(f"next: vqedge export {out} -o {out.name}.vqedge")
    result(str(out))


def _sizes(folder: Path) -> dict[str, int]:
    return {item.name: item.stat().st_size for item in sorted(folder.iterdir())}


def _folder_of(source: str, revision: str) -> tuple[Path, str | None, str | None]:
    """The folder, and for a repository of the hub its name and the commit that was downloaded."""
    if Path(source).exists():
        return Path(source), None, None
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source}: no such folder, and not a repository of the hub; give OWNER/NAME or a path"
        )
    from vqedge.base.fetch import fetch_model

    with byte_progress() as tell:
        folder, commit = fetch_model(source, revision, tell)
    say(f"downloaded to {folder}; you may delete it after the import")
    return folder, source, commit
