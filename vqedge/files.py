"""Files shared with other processes: where they are kept, sha256, replacement, locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.1
_BLOCK_BYTES = 1 << 20
_TEMPORARY = ".vqedge-{}.tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = {  # of a disk or its owner, not of a program
    *_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
_IN_RUST = re.compile(r"\(os error (\d+)\)")  # so safetensors tells it


def cache_root() -> Path:
    """The folder for what can be made again: `VQEDGE_CACHE`, else in the user's cache folder."""
    if configured := os.environ.get("VQEDGE_CACHE"):
        return Path(configured).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/vqedge"
    parent = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (parent if parent.is_absolute() else Path.home() / ".cache") / "vqedge"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits. Frees the interpreter lock while it works.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def disk_fault(error: Exception, place: Path | None = None) -> str | None:
    """Where the disk refuses what, and the next step; None if that is not what failed.

    Args:
        error: that a file could not be read or written for.
        place: where, if the error does not say.
    """
    told = _IN_RUST.search(str(error))
    number = error.errno if isinstance(error, OSError) else told and int(told[1])
    if number not in _REFUSALS or number is None:
        return None
    named = error.filename if isinstance(error, OSError) else None
    where, there = (f"{named or place}: ", " there") if named or place else ("", "")
    step = f"make room{there} or allow more" if number in _FULL else "check the path and its rights"
    return f"{where}{os.strerror(number)}; {step}"


def surplus(paths: Iterable[Path], most: int, keep: Path) -> list[Path]:
    """Files of a cache to remove, so that `keep` and the `most` - 1 others that changed last stay.

    Files of a time to come, left by a clock that was set back, are the first to go.
    """
    now = time.time()

    def changed(path: Path) -> tuple[bool, float]:
        try:
            time_s = path.stat().st_mtime
        except OSError:  # another process removes it
            time_s = 0.0
        return time_s <= now, time_s

    others = (path for path in paths if path != keep)
    return sorted(others, key=changed, reverse=True)[most - 1 :]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed onto it at the end: no half-written file is seen.

    Nor after a power cut: the bytes are on the disk before the name is.

    Raises:
        OSError: the file cannot be written or renamed; it names `path`.
    """
    temporary = path.with_name(_TEMPORARY.format(secrets.token_hex(8)))  # fits where any name does
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno in _REFUSALS and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # it is gone, or what the disk refuses was told
            temporary.unlink()


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """What is written to `path` meanwhile may be read by whom the user's umask lets read a file.

    safetensors 0.8 makes files that nobody but their owner reads.

    Raises:
        OSError: the file cannot be made.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def remove_unfinished(folder: Path) -> None:
    """Remove what was being written by `replacing` when a kill came; nobody may be writing now.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.glob(_TEMPORARY.format("*")):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Put a file's bytes or a folder's names on the disk, so that a power cut cannot lose them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Take the lock at once or not at all.

    Returns:
        an open file descriptor, whose `os.close` frees the lock; None if somebody holds it.

    Raises:
        OSError: the lock file cannot be opened, or its filesystem has no locks.
    """
    handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    try:
        taken = _take(handle)
    except BaseException:
        os.close(handle)
        raise
    if not taken:
        os.close(handle)
        return None
    return handle


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock, waiting for its holder to finish or die. The lock file stays behind, empty.

    Args:
        path: the lock file; made if missing.
        on_wait: called once if somebody else holds the lock.

    Raises:
        OSError: the lock file cannot be opened, or its filesystem has no locks.
    """
    handle = try_lock(path)
    if handle is None and on_wait is not None:
        on_wait()
    while handle is None:
        time.sleep(_POLL_S)
        handle = try_lock(path)
    try:
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
