"""Files shared with others: where they are kept, bounded reading, sha256, replacement, locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vqedge.errors import ConfigError

MOST_TEXT_BYTES = 64 << 20
_POLL_S = 0.1
_YOUNG_S = 60.0
_BLOCK_BYTES = 1 << 20
_TEMPORARY = ".vqedge-{}.tmp"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a filesystem, as some of clusters
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = {  # of a disk or its owner, not of a program
    *_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
_IN_RUST = re.compile(r"\(os error (\d+)\)")  # so safetensors tells it


def cache_root() -> Path:
    """The folder for what can be made again: `VQEDGE_CACHE`, else in the user's cache folder.

    Raises:
        ConfigError: it is in a home folder, and nobody knows where that is.
    """
    configured = os.environ.get("VQEDGE_CACHE")
    parent = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if configured:
            return Path(configured).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/vqedge"
        return (parent if parent.is_absolute() else Path.home() / ".cache") / "vqedge"
    except RuntimeError:
        whose = f"{configured}: no such home folder" if configured else "is not set, nor is HOME"
        raise ConfigError(f"VQEDGE_CACHE {whose}; give it the full path of a folder") from None


def bytes_within(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """A file's bytes; of one that never ends, a device or a pipe, no more than that is read.

    Raises:
        OSError: the file cannot be read, or holds more.
    """
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"holds more than {most_bytes >> 20} MiB", str(path))
    return data


def text_within(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """A file as text, as `bytes_within` reads it: UTF-8, its lines ended by a line feed.

    The byte order mark that some editors begin it with is left out.

    Raises:
        OSError: the file cannot be read, or holds more.
        UnicodeDecodeError: it is not UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(bytes_within(path, most_bytes)), encoding="utf-8-sig").read()


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


def is_special(path: Path) -> bool:
    """Whether a pipe, a device or the like is there: nothing that can be replaced."""
    return path.exists() and not (path.is_file() or path.is_dir())


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A file beside `path` to write to, renamed onto it at the end: no half-written one is seen.

    Nor after a power cut: the bytes are on the disk before the name is. It is there, empty, and
    locked for as long: `remove_unfinished` takes it only from the dead.

    Args:
        path: the file to write. A link is replaced; what it leads to, a video maybe, stays.
        mode: its rights, less what the user's umask takes.

    Raises:
        OSError: the file cannot be written or renamed; it names `path`.
    """
    temporary = path.with_name(_TEMPORARY.format(secrets.token_hex(8)))  # fits where any name does
    handle = None
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with suppress(OSError):  # where there are no locks, nobody removes anything
            _take(handle)
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
        if handle is not None:
            os.close(handle)


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """What is written to `path` meanwhile gets the permissions that the user's umask gives.

    safetensors 0.8 makes files that nobody but their owner reads.

    Raises:
        OSError: the file cannot be made.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def remove_unfinished(folder: Path, older_s: float = _YOUNG_S) -> None:
    """Remove what `replacing` wrote in a folder when a kill came. What is being written stays.

    Args:
        folder: where; what cannot be removed stays.
        older_s: how long ago each was written to, at least: a new one may not be locked yet. 0
            where nobody can be writing now.
    """
    for path in folder.glob(_TEMPORARY.format("*")):
        with suppress(OSError):  # another process removes it, too, or there are no locks
            if time.time() - path.stat().st_mtime < older_s:
                continue
            lock = try_lock(path, create=False)
            if lock is None:
                continue
            try:
                path.unlink()
            finally:
                os.close(lock)


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
def locked(
    path: Path, on_wait: Callable[[], None] | None = None, *, stays: bool = True
) -> Iterator[None]:
    """Hold the lock, waiting for its holder to finish or die.

    Args:
        path: the lock file; made if missing.
        on_wait: called once if somebody else holds the lock.
        stays: the lock file stays behind, empty; or else it goes, and all who lock it say so.

    Raises:
        OSError: the lock file cannot be opened, or its filesystem has no locks.
    """
    take = try_lock if stays else _lock_in_place
    handle = take(path)
    if handle is None and on_wait is not None:
        on_wait()
    while handle is None:
        time.sleep(_POLL_S)
        handle = take(path)
    try:
        yield
    finally:
        if not stays:
            path.unlink(missing_ok=True)
        os.close(handle)


def _lock_in_place(path: Path) -> int | None:
    """A lock on the file that has this name; None if another has it, or has just removed it."""
    try:
        handle = try_lock(path)
    except OSError as error:
        if error.errno in NO_LOCKS:  # nobody can hold it
            path.unlink(missing_ok=True)
        raise
    if handle is not None and not os.fstat(handle).st_nlink:
        os.close(handle)
        return None
    return handle


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
