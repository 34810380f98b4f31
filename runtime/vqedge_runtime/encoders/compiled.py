"""What TensorRT and OpenVINO compile on this machine, kept between processes.

    <cache>/kernels/<key>       TensorRT-RTX's kernels for an engine
    <cache>/openvino/<key>      OpenVINO's models, of which two are an encoder (`openvino.py`)
    <cache>/providers/<key>/    engines or kernels that a provider of ONNX Runtime keeps by itself

A key is a hash over everything that they are compiled from and for: where any of it changes, they
are compiled anew. Files begin with the sha256 of the rest. All of it may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vqedge.files import locked, remove_unfinished, replacing, surplus
from vqedge_runtime.cache_folder import cache_folder

_KEPT_FILES, _KEPT_FOLDERS = 16, 4  # kernels are some megabytes, engines up to a gigabyte
_DIGEST_BYTES = 32
_LOCK, _WHOLE = "lock", "whole"
_PROOF = bytes(1 << 16)  # a disk that has room for it was not full while the rest was written

logger = logging.getLogger(__name__)


class KernelCache:
    """TensorRT-RTX's cache of compiled kernels, of one engine, with the file it outlives in.

    Args:
        config: an `IRuntimeConfig` of the engine; it is told to use the cache. A context that is
            made from it must be dropped first.
        facts: what the kernels are compiled from and for.
    """

    def __init__(self, config: Any, *facts: str) -> None:
        self._file: Path | None = None
        with suppress(OSError):
            self._file = cache_folder() / "kernels" / _key(facts)
        self._known_bytes = 0
        self._cache = config.create_runtime_cache()
        if self._file is not None and (known := kept(self._file)) is not None:
            if self._cache.deserialize(known):
                self._known_bytes = len(known)
            else:  # it need not be empty now
                self._cache = config.create_runtime_cache()
        config.set_runtime_cache(self._cache)

    def store(self) -> None:
        """Write the file if anything was compiled since it was read."""
        if self._file is None:
            return
        kernels = self._cache.serialize()
        if kernels is not None and len(blob := bytes(kernels)) > self._known_bytes:
            keep_file(self._file, blob, _KEPT_FILES)
            self._known_bytes = len(blob)


def keep_file(file: Path, content: bytes, most: int) -> None:
    """Write a file of a folder that keeps those that were used last.

    A disk that is full or not writable costs the next start time only.

    Args:
        file: to write, whole or not at all.
        content: what `kept` is to give back.
        most: files that stay in its folder.
    """
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(file.parent)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            opened.write(hashlib.sha256(content).digest())
            opened.write(content)
        for old in surplus(file.parent.iterdir(), most, keep=file):
            old.unlink(missing_ok=True)


def kept(file: Path) -> bytes | None:
    """What `keep_file` was given, if it is there as it was written."""
    try:
        with file.open("rb") as opened:
            digest, content = opened.read(_DIGEST_BYTES), opened.read()
    except OSError:
        return None
    if hashlib.sha256(content).digest() != digest:
        return None
    with suppress(OSError):  # another's cache, to read only
        os.utime(file)  # in use: the others are the first to go
    return content


@contextmanager
def provider_folder(*facts: str) -> Iterator[Path]:
    """A folder in which a provider of ONNX Runtime may find and leave what it compiles.

    One process at a time is in it. It is empty if the last one died, failed or filled the disk:
    providers write into place, and fail at what is not whole.

    Args:
        facts: what is compiled, from and for what: providers themselves look at names only.

    Raises:
        OSError: it cannot be made, emptied or locked.
    """
    folder = cache_folder() / "providers" / _key(facts)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _LOCK, _tell_of_waiting):
        if not (folder / _WHOLE).exists():
            _empty(folder)
        (folder / _WHOLE).unlink(missing_ok=True)  # until the provider is done
        try:
            yield folder
        except BaseException:
            _empty(folder)
            raise
        with suppress(OSError):
            with replacing(folder / _WHOLE) as temporary:
                temporary.write_bytes(_PROOF)
            _empty_oldest(folder)


def _tell_of_waiting() -> None:
    logger.warning("waiting for another process that compiles the same encoder")


def _key(facts: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _empty(folder: Path) -> None:
    """Remove all but the lock, which somebody may hold."""
    (folder / _WHOLE).unlink(missing_ok=True)  # first: from now on it is not
    for file in folder.iterdir():
        if file.name != _LOCK:
            file.unlink(missing_ok=True)


def _empty_oldest(used: Path) -> None:
    """Leave the folders themselves: a provider may want to write into its own when it ends."""
    folders = used.parent.glob(f"*/{_WHOLE}")
    for whole in surplus(folders, _KEPT_FOLDERS, keep=used / _WHOLE):
        _empty(whole.parent)
