"""Files that run code when they are read: their names, how to turn them into safetensors."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

_SUFFIXES: Final = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_WEIGHTS: Final = "pytorch_model"  # what the hub calls weights; training_args.bin is none
_CONVERT: Final = (
    "import sys, torch; from safetensors.torch import save_file; "
    'read = lambda path: torch.load(path, map_location="cpu", weights_only=True); '
    "save_file({name: value.clone().contiguous() for path in sys.argv[2:] "
    "for name, value in read(path).items()}, sys.argv[1])"
)


def may_be_pickle(name: str) -> bool:
    """Whether files of this name or path hold pickles."""
    return name.lower().endswith(_SUFFIXES)


def pickles_among(names: Sequence[str]) -> list[str]:
    """Those of a folder's files that hold weights as pickles, sorted."""
    found = sorted(name for name in names if may_be_pickle(name) and "/" not in name)
    return [name for name in found if name.startswith(_WEIGHTS)] or found


def conversion_line(shards: Sequence[PurePath], out: PurePath) -> str:
    """A command that copies the tensors of all shards into one safetensors file.

    It unpickles tensors only, and copies those that share memory, which safetensors refuses.
    """
    words = ["python", "-c", _CONVERT, str(out), *map(str, shards)]
    return shlex.join(words)
