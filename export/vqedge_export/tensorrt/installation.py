"""The TensorRT of this machine, as a C++ program sees it: headers, library, and that they agree.

The wheels hold no headers. They come with the Debian packages (JetPack has them), or the tarball.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqedge.errors import BackendUnavailable
from vqedge.packages import folders_of, pip_command

ROOT_VARIABLE = "TENSORRT_ROOT"
MIN_MAJOR = 10
_TRIPLES = ("x86_64-linux-gnu", "aarch64-linux-gnu")
_SYSTEM_ROOTS = ("/usr", "/usr/local/tensorrt", "/opt/tensorrt")
_VERSION_PARTS = ("MAJOR", "MINOR", "PATCH", "BUILD")


@dataclass(frozen=True)
class TensorRT:
    """Headers of a TensorRT whose library is here, too."""

    include: Path
    version: str  # "10.3.0.26"


def find_tensorrt() -> TensorRT:
    """Headers and library of one major version.

    They are looked for in `TENSORRT_ROOT`, an unpacked tarball or an install prefix; if that is not
    set, where Debian packages and containers put them.

    Raises:
        BackendUnavailable: headers or library are missing, too old, or of different majors.
    """
    include = find_headers()
    version = header_version(include)
    library = _find_library(include)
    found = _library_version(library)
    if found.split(".")[0] != version.split(".")[0]:
        raise BackendUnavailable(
            f"the headers in {include} are TensorRT {version}, the library {library} is {found}. "
            f"Fix: install the headers of {found} (apt-get install libnvinfer-headers-dev), or "
            f"unpack NVIDIA's tarball of it and set {ROOT_VARIABLE}"
        )
    return TensorRT(include, version)


def find_headers() -> Path:
    """The folder of `NvInfer.h`, see `find_tensorrt`.

    Raises:
        BackendUnavailable: no such folder.
    """
    searched = list(_include_folders())
    for folder in searched:
        if (folder / "NvInfer.h").is_file():
            return folder
    places = ", ".join(map(str, searched))
    raise BackendUnavailable(
        f"no NvInfer.h in {places}; the tensorrt wheels hold no headers. Fix: apt-get install "
        f"libnvinfer-headers-dev of the library's version, or unpack NVIDIA's tarball and set "
        f"{ROOT_VARIABLE}"
    )


def header_version(include: Path) -> str:
    """The version that `NvInferVersion.h` defines, four numbers.

    Raises:
        BackendUnavailable: it defines none, or one without the plugin interface.
    """
    path = include / "NvInferVersion.h"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}. {_REINSTALL}") from error
    defined = dict(re.findall(r"^#define\s+(\w+)\s+(\w+)", text, re.M))
    parts = [_resolved(defined, f"NV_TENSORRT_{part}") for part in _VERSION_PARTS]
    if not all(part.isdecimal() for part in parts):
        raise BackendUnavailable(f"{path} defines no version. {_REINSTALL}")
    if int(parts[0]) < MIN_MAJOR:
        raise BackendUnavailable(
            f"{path} is of TensorRT {'.'.join(parts)}, the plugin needs {MIN_MAJOR} or newer. "
            f"Fix: install TensorRT {MIN_MAJOR} (JetPack 6.1 or newer), or export without a plugin"
        )
    return ".".join(parts)


def _library_version(library: Path) -> str:
    """What libnvinfer itself says, three numbers."""
    try:
        number = int(ctypes.CDLL(str(library)).getInferLibVersion())
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(f"{library} cannot be loaded: {error}. {_REINSTALL}") from error
    if number < MIN_MAJOR * 10_000:  # before 10, a thousand per major
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


_REINSTALL = f"Fix: install TensorRT again, or set {ROOT_VARIABLE} to another installation"


def _resolved(defined: dict[str, str], name: str) -> str:
    """A macro's value; newer headers define one macro by another."""
    for _ in range(len(defined)):
        value = defined.get(name, "")
        if value.isdecimal() or value not in defined:
            return value
        name = value
    return ""


def _roots() -> list[Path]:
    configured = os.environ.get(ROOT_VARIABLE)
    return [Path(name) for name in ([configured] if configured else _SYSTEM_ROOTS)]


def _include_folders() -> Iterator[Path]:
    for prefix in _roots():
        yield prefix / "include"
        for triple in _TRIPLES:
            yield prefix / "include" / triple


def _find_library(include: Path) -> Path:
    """The newest libnvinfer of the wheels, which `import tensorrt` prefers, else of the system."""
    folders = list(dict.fromkeys([*_wheel_folders(), *_library_folders()]))
    for folder in folders:
        if found := sorted(folder.glob("libnvinfer.so.*"), key=_by_version):
            return found[-1]
    raise BackendUnavailable(
        f"headers in {include}, but no libnvinfer.so in {', '.join(map(str, folders))}. "
        f"Fix: apt-get install libnvinfer-dev, or {pip_command()} install 'vqedge[tensorrt]'"
    )


def _library_folders() -> Iterator[Path]:
    for prefix in _roots():
        for triple in _TRIPLES:
            yield prefix / "lib" / triple
        yield prefix / "lib"
        yield prefix / "lib64"


def _wheel_folders() -> Iterator[Path]:
    yield from folders_of("tensorrt_libs")


def _by_version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".") if part.isdecimal())
