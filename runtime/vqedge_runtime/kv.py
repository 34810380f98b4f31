"""`.kv` files: what the language model read of a video, so that a later process need not read it.

    magic  "VQEDGEKV" and version 1      9 bytes
    mac    HMAC-SHA256, keyed by a secret of this user, over identity and state      32 bytes
    state  llama.cpp's keys and values of template and video

The identity (language model, llama.cpp build, template, rows) is not in the file: it is what the
reader expects, so that a file of anything else is stale, as is a damaged one. A stale file is
written anew. llama.cpp trusts the state it is given; the secret keeps it to states that this user
wrote: a `.kv` that came with somebody else's `.vqt` is never read.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from contextlib import suppress
from pathlib import Path

from vqedge.errors import printable
from vqedge.files import remove_unfinished, replacing
from vqedge_runtime.cache_folder import cache_folder, cache_name

SUFFIX = ".kv"
_KIND = b"VQEDGEKV"
_MAGIC = _KIND + b"\x01"
_HEAD_BYTES = len(_MAGIC) + 32
_SECRET_BYTES = 32
_MOST_BYTES = 1 << 30

logger = logging.getLogger(__name__)


def kv_path(vqt: Path) -> Path:
    """Where the state of a `.vqt` lies."""
    return vqt.with_suffix(SUFFIX)


def read_kv(path: Path, identity: bytes) -> bytes | None:
    """The state in a file, None if there is none for this identity.

    Args:
        path: the file.
        identity: of all that the state depends on.
    """
    try:
        if not _HEAD_BYTES < path.stat().st_size <= _MOST_BYTES:
            return None
        with path.open("rb", buffering=0) as file:  # a buffer would copy all of it
            head = file.read(_HEAD_BYTES)
            if not head.startswith(_MAGIC):  # of another program, perhaps a gigabyte
                return None
            state = file.read()
    except OSError:
        return None
    wanted = _mac(identity, state)
    whole = wanted is not None and hmac.compare_digest(head[len(_MAGIC) :], wanted)
    return state if whole else None


def write_kv(path: Path, identity: bytes, state: bytes) -> bool:
    """Write a file whole or not at all, and over no file of another kind.

    Returns:
        whether it was done; a warning says why not.
    """
    mac = _mac(identity, state)
    if mac is None:
        logger.warning(
            "%s: cannot be written, so that no .kv can be signed and the next ask reads the video "
            "anew; name another folder in VQEDGE_CACHE",
            cache_name(),
        )
        return False
    with suppress(OSError):
        if not _is_of_others(path):
            remove_unfinished(path.parent)
            with replacing(path) as temporary, temporary.open("wb") as file:
                file.write(_MAGIC + mac)
                file.write(state)
            return True
    logger.warning(
        "%s: cannot be written, or is another program's; the next ask reads the video anew",
        printable(str(path)),
    )
    return False


def _is_of_others(path: Path) -> bool:
    """Whether something else lies there: `.kv` is the end of other programs' files, too."""
    try:
        with path.open("rb") as file:
            return file.read(len(_KIND)) != _KIND
    except FileNotFoundError:
        return False


def _mac(identity: bytes, state: bytes) -> bytes | None:
    """None where no secret can be kept."""
    secret = _secret()
    if secret is None:
        return None
    mac = hmac.new(secret, hashlib.sha256(identity).digest(), "sha256")
    mac.update(state)
    return mac.digest()


def _secret() -> bytes | None:
    """This user's secret, made where there is no whole one; readable by nobody else."""
    try:
        path = cache_folder() / "kv.secret"
        if not path.exists() or path.stat().st_size != _SECRET_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, 0o600) as temporary:
                temporary.write_bytes(secrets.token_bytes(_SECRET_BYTES))
        return path.read_bytes()  # of two that make one at once, the last one's
    except OSError:
        return None
