"""Write a bundle so that it appears whole or not at all. See docs/bundle-format.md."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vqedge.bundle.folder import bundle_errors, hashes, is_ignored, scan
from vqedge.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    BundleFacts,
    FileRecord,
    Manifest,
    manifest_bytes,
    manifest_from_bytes,
)
from vqedge.bundle.reader import Bundle, open_bundle
from vqedge.errors import BundleError
from vqedge.files import bytes_within, flush
from vqedge.workspace import OLD, turn_at, workspace_beside

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_A_BUNDLE = "exists and is not a bundle; choose another name or remove it yourself"
_LINK = "is a link; give the folder that it leads to, or choose another name"


@dataclass
class BundleDraft:
    """A bundle being written. Put the files into `folder`, then call `finish` once."""

    folder: Path
    out: Path
    overwrite: bool
    replaces: str | None = None
    finished: bool = field(default=False, init=False)

    def finish(self, facts: BundleFacts, known: Mapping[str, str] | None = None) -> Bundle:
        """Hash the files, add the manifest, flush all to disk, and move the bundle into place.

        Args:
            facts: everything about the bundle but its list of files.
            known: sha256 that files have to have, by their paths.

        Raises:
            BundleError: a file that has no place in a bundle or is not what is known of it, facts
                that name a file that is not there, or an `out` that has appeared meanwhile.
            RuntimeError: it was called before.
        """
        if self.finished:
            raise RuntimeError(f"{self.out}: finish() was called before; a draft is written once")
        with bundle_errors(self.out):
            manifest = Manifest.sealed(facts, self._files(facts, known or {}))
            (self.folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
            for path in [*self.folder.rglob("*"), self.folder]:
                flush(path)
            open_bundle(self.folder, verify=False)
            with turn_at(self.out):
                self.check_target()
                _take_over_texts(self.out, self.folder)
                _move_into_place(self.folder, self.out)
        self.finished = True
        return Bundle(self.out, manifest)

    def check_target(self) -> None:
        """Refuse what may not be replaced.

        Raises:
            BundleError: so.
            OSError: it cannot be read.
        """
        _check_target(self.out, self.overwrite)
        if self.replaces and _digest_of(self.out) != self.replaces:
            raise BundleError("was changed meanwhile; run the command again")

    def _files(self, facts: BundleFacts, known: Mapping[str, str]) -> tuple[FileRecord, ...]:
        sizes = scan(self.folder)
        sha256 = hashes(self.folder, list(sizes))
        if damaged := [path for path, wanted in known.items() if sha256.get(path) != wanted]:
            raise BundleError(f"{damaged[0]} is damaged; make it again")
        return tuple(_record(facts, path, sizes[path], sha256[path]) for path in sorted(sizes))


@contextmanager
def bundle_writer(
    out: Path, *, overwrite: bool = False, replaces: str | None = None
) -> Iterator[BundleDraft]:
    """Build a bundle beside `out` and move it there when `finish` is called.

    An exception, a kill, or a power cut leaves `out` as it was.

    Args:
        out: the folder `NAME.vqedge` to make. Missing parents are made.
        overwrite: replace `out` if it is a bundle. Anything else is never replaced.
        replaces: the digest of the one bundle that may be replaced; any may by default.

    Raises:
        BundleError: `out` exists and may not be replaced, or the disk cannot be written.
        RuntimeError: the block ended without an error and without `finish`.
    """
    out = Path(os.path.abspath(out))
    with ExitStack() as stack:
        with bundle_errors(out):
            workspace = stack.enter_context(workspace_beside(out))
            draft = BundleDraft(workspace / "bundle", out, overwrite, replaces)
            draft.check_target()
            draft.folder.mkdir()
        try:
            yield draft
        except OSError as error:
            where, why = error.filename or out, error.strerror or str(error)
            raise BundleError(
                f"{where}: {why}; free some space, or choose another folder"
            ) from error
        if not draft.finished:
            raise RuntimeError(f"{out}: the bundle was not finished; call finish() in the block")


def replaceable(out: Path) -> bool:
    """Whether `bundle_writer` would overwrite it: it is a bundle, however damaged."""
    try:
        _check_target(out, overwrite=True)
    except (BundleError, OSError):
        return False
    return out.is_dir()


def _record(facts: BundleFacts, path: str, size_bytes: int, sha256: str) -> FileRecord:
    role = facts.role_of(path)
    if role is None:
        raise BundleError(f"{path}: has no role in a bundle; leave it out or move it to LICENSES/")
    return FileRecord(path=path, size_bytes=size_bytes, sha256=sha256, role=role)


def _check_target(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise BundleError("exists already; choose another name, or give --overwrite")
    if out.is_symlink():
        raise BundleError(_LINK)
    if not out.is_dir():
        raise BundleError(_NOT_A_BUNDLE)
    strangers = sorted(path for path in scan(out).keys() - _listed(out) if not is_ignored(path))
    if strangers:
        raise BundleError(f"holds {strangers[0]}, which is not part of a bundle; move it away")


def _digest_of(out: Path) -> str:
    return manifest_from_bytes(bytes_within(out / MANIFEST_NAME, MAX_MANIFEST_BYTES)).digest


def _listed(out: Path) -> set[str]:
    """The files an existing bundle speaks of, of any schema version, intact or not."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        with (out / MANIFEST_NAME).open("rb") as file:
            raw = json.loads(file.read(MAX_MANIFEST_BYTES))
        if raw.keys() >= {"schema_version", "encoder", "llm"}:
            return {file["path"] for file in raw["files"]}
    raise BundleError(_NOT_A_BUNDLE)


def _move_into_place(folder: Path, out: Path) -> None:
    if not os.path.lexists(out):
        os.rename(folder, out)
    elif not _exchange(folder, out):
        os.rename(out, folder.parent / OLD)
        os.rename(folder, out)
    flush(out.parent)


def _take_over_texts(out: Path, folder: Path) -> None:
    """What a user wrote beside the old bundle's files is in the new one before it has its place."""
    if not os.path.lexists(out):
        return
    for path in scan(out).keys() - _listed(out):
        if is_ignored(path) and not (folder / path).exists():
            take_over(out / path, folder / path)
            flush(folder / path)
            flush((folder / path).parent)


def take_over(source: Path, target: Path) -> None:
    """The same file in a new bundle: a second name for it where the disk allows, or a copy.

    Raises:
        OSError: it cannot be read or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _exchange(folder: Path, out: Path) -> bool:
    """Swap two folders in one step, where the system can. The old bundle is then in `folder`."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(folder), os.fsencode(out)
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
