"""A bundle's folder as it lies on disk: which files, how large, with which hashes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vqedge.bundle.manifest import MANIFEST_NAME, MAX_DEPTH, MAX_FILE_BYTES
from vqedge.cores import usable_cores
from vqedge.errors import BundleError
from vqedge.files import NO_LOCKS, file_sha256
from vqedge.pickles import may_be_pickle

MAX_ENTRIES = 1024
IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")
IGNORED_SUFFIXES = (".md", ".txt")


@contextmanager
def bundle_errors(root: Path) -> Iterator[None]:
    """Turn every problem with files into one printable line that starts with the bundle's path.

    Raises:
        BundleError: in place of BundleError, OSError and ValueError.
    """
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{root}: {error}") from error
    except (OSError, ValueError) as error:
        step = "check the path, its rights and the space on its disk"
        if isinstance(error, OSError) and error.errno in NO_LOCKS:
            step = "make it on a local disk and copy it there"
        raise BundleError(f"{root}: {error}; {step}") from error


def scan(root: Path) -> dict[str, int]:
    """Sizes in bytes of all files below `root` by path, without the manifest. Follows no link.

    Raises:
        BundleError: a link, a pipe or device, a pickle, or more than the limits allow.
        OSError: a folder cannot be read.
    """
    sizes: dict[str, int] = {}
    for entries, (path, status) in enumerate(_walk(root, PurePosixPath()), start=1):
        if entries > MAX_ENTRIES or len(path.parts) > MAX_DEPTH + 1:
            raise BundleError(f"{path}: too many files or folders; export again")
        if stat.S_ISDIR(status.st_mode):
            continue
        _check_file(path, status)
        sizes[str(path)] = status.st_size
    sizes.pop(MANIFEST_NAME, None)
    return sizes


def is_ignored(path: str) -> bool:
    """True for an unlisted file that may lie in a bundle; it is never read."""
    name = PurePosixPath(path).name
    return name in IGNORED_NAMES or name.lower().endswith(IGNORED_SUFFIXES)


def hashes(root: Path, paths: list[str]) -> dict[str, str]:
    """The sha256 of each file, several at a time.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        return dict(zip(paths, pool.map(lambda path: file_sha256(root / path), paths), strict=True))


def _walk(root: Path, below: PurePosixPath) -> Iterator[tuple[PurePosixPath, os.stat_result]]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            status, path = entry.stat(follow_symlinks=False), below / entry.name
            if stat.S_ISLNK(status.st_mode):
                raise BundleError(f"{path}: a link; a bundle holds plain files: copy it in")
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(root, path)


def _check_file(path: PurePosixPath, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a regular file; remove it")
    if may_be_pickle(path.name):
        raise BundleError(f"{path}: may hold a pickle, which runs code; remove it")
    if status.st_size > MAX_FILE_BYTES:
        raise BundleError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB; remove it")
