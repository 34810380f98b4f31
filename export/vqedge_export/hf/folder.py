"""A Hugging Face model folder, read as if a stranger had made it.

safetensors only. Names in its index must be names of files beside it; nothing is followed, nothing
is unpickled, and no tensor is read before its shape was checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqedge.base.tensors import Array, TensorFile
from vqedge.errors import CheckpointError
from vqedge.pickles import conversion_line, pickles_among

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_MAX_BYTES = 64 << 20  # tokenizer.json of a large vocabulary has some 10 MB
_MAX_SHARDS = 512


class HfFolder:
    """Configuration, other JSON files and tensors of a folder.

    Args:
        path: the folder.

    Raises:
        CheckpointError: it is not there, holds pickles only, or its index cannot be trusted.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; give one that holds config.json")
        self.path = path
        self.config = self.json("config.json")
        self.tensors = ShardedTensors(path, self._shards())

    def json(self, name: str) -> dict[str, Any]:
        """An object from a JSON file of the folder.

        Raises:
            CheckpointError: it is missing, too large, or not a JSON object.
        """
        path = self.path / name
        try:
            value = json.loads(self._content(name))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON ({error}); download it again") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: a JSON {type(value).__name__}, want an object")
        return value

    def text(self, name: str) -> str:
        """What a text file of the folder says.

        Raises:
            CheckpointError: it is missing, too large, or not UTF-8.
        """
        try:
            return self._content(name).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path / name}: {error}; download it again") from error

    def file(self, name: str) -> Path:
        """Path of a plain file that lies in the folder itself.

        The hub library's cache holds links, and those are not followed either.

        Raises:
            CheckpointError: it is missing, a link, or its name leads elsewhere.
        """
        path = self.path / name
        if Path(name).name != name or name.startswith("."):
            raise CheckpointError(f"{self.path}: {name!r} is not the name of a file in the folder")
        if path.is_symlink():
            raise CheckpointError(f"{path}: a link; copy the folder with `cp -rL`, then import it")
        if not path.is_file():
            raise CheckpointError(f"{self.path}: no {name}; download the whole repository")
        return path

    def _content(self, name: str) -> bytes:
        path = self.file(name)
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES >> 20} MiB, not a config")
        return path.read_bytes()

    def _shards(self) -> dict[str, Path]:
        """The safetensors files; of an index, by what it says."""
        if (self.path / INDEX).exists():
            named = self.json(INDEX).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
                raise CheckpointError(f"{self.path / INDEX}: no weight_map of names to files")
            return {name: self._shard(name) for name in sorted(set(named.values()))}
        if (self.path / SINGLE).exists():
            return {SINGLE: self._shard(SINGLE)}
        if pickles := pickles_among([path.name for path in self.path.iterdir()]):
            whole = self.path.resolve()
            line = conversion_line([whole / name for name in pickles], whole / SINGLE)
            raise CheckpointError(
                f"{self.path}: {pickles[0]} is a pickle, which runs code when it is read; convert "
                f"it, then import the folder again: {line}"
            )
        raise CheckpointError(f"{self.path}: no {SINGLE} and no {INDEX}")

    def _shard(self, name: str) -> Path:
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{self.path / INDEX}: {name!r} is not a safetensors file")
        return self.file(name)


class ShardedTensors(Mapping[str, Array]):
    """Tensors of several files under one roof; each is read when asked for, and not kept.

    Raises:
        CheckpointError: a file is broken, or two hold a tensor of the same name.
    """

    def __init__(self, folder: Path, shards: Mapping[str, Path]) -> None:
        if len(shards) > _MAX_SHARDS:
            raise CheckpointError(f"{folder}: {len(shards)} shards, at most {_MAX_SHARDS} are read")
        self._home: dict[str, TensorFile] = {}
        for path in shards.values():
            file = TensorFile(path)
            if twice := sorted(self._home.keys() & file.keys()):
                raise CheckpointError(f"{path}: {twice[0]!r} is in another shard, too")
            self._home |= dict.fromkeys(file, file)

    def __getitem__(self, name: str) -> Array:
        return self._home[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; its data is not read."""
        return self._home[name].shape(name)

    def dtype(self, name: str) -> str:
        """Type of a tensor, as safetensors spells it: F32, F16, BF16."""
        return self._home[name].dtype(name)
