"""Parts: which tensor of a source becomes which of ours, checked as a whole, written one by one."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqedge.base.tensors import Array
from vqedge.errors import CheckpointError
from vqedge_export.hf.folder import HfFolder

_SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of the types that are read
_MOST_TOLD = 3600  # characters of one error's names
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,5})(?=\.)", re.ASCII)  # of a layer
Shape = tuple[int, ...]


class MisfitError(CheckpointError):
    """A source's tensors are not those that its configuration wants.

    Attributes:
        lines: what is wrong with each, all of them.
        cut: the message could not hold them.
    """

    def __init__(self, message: str, lines: Sequence[str], cut: bool) -> None:
        super().__init__(message)
        self.lines, self.cut = lines, cut


def _as_it_is(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Part:
    """One tensor of ours.

    Attributes:
        name: ours.
        source: theirs.
        shape: that theirs must have.
        take: ours from theirs; moves numbers, does not change them.
    """

    name: str
    source: str
    shape: Shape
    take: Callable[[Array], Array] = _as_it_is

    @property
    def taken_shape(self) -> Shape:
        """Shape of ours, found without memory for it."""
        return self.take(np.broadcast_to(np.float32(0), self.shape)).shape


def transposed(array: Array) -> Array:
    """A linear layer's weight as `[in, out]`."""
    turned: Array = array.T
    return turned


def require_fit(
    folder: HfFolder, parts: Iterable[Part], harmless: Callable[[str], bool]
) -> list[str]:
    """See that the source holds exactly what is wanted.

    Args:
        folder: the source.
        parts: all that is taken from it.
        harmless: whether a tensor that is not taken may be there.

    Returns:
        names of the harmless tensors that are not taken.

    Raises:
        MisfitError: names the tensors that are missing, unknown, or of another shape or type,
            layers that lack the same as one.
    """
    tensors, wanted = folder.tensors, {part.source: part.shape for part in parts}
    missing = sorted(wanted.keys() - tensors.keys())
    spare = sorted(tensors.keys() - wanted.keys())
    unknown = [name for name in spare if not harmless(name)]
    wrong = [_found(folder, name, shape) for name, shape in wanted.items() if name in tensors]
    faults = {"missing": missing, "unknown": unknown, "wrong": [line for line in wrong if line]}
    faults = {what: names for what, names in faults.items() if names}
    if faults:
        room = _MOST_TOLD // len(faults)
        listed = {what: _listed(names, room) for what, names in faults.items()}
        told = [f"{len(names)} {what}: {listed[what][0]}" for what, names in faults.items()]
        raise MisfitError(
            f"{folder.path}: tensors do not fit its config.json; {'; '.join(told)}",
            [f"{what}: {name}" for what, names in faults.items() for name in names],
            any(left for _, left in listed.values()),
        )
    return spare


def _listed(names: Sequence[str], room: int) -> tuple[str, int]:
    """Names after each other, those that differ in one number as one: `layers.0-3.7.bias`.

    Args:
        names: sorted.
        room: characters, beyond which the rest is only counted.

    Returns:
        The text, and how many it only counts.
    """
    alike: dict[tuple[str, str], list[int]] = {}
    for name in names:
        found = _NUMBER.search(name)
        key = (name[: found.start()], name[found.end() :]) if found else (name, "")
        alike.setdefault(key, []).extend([int(found[0])] if found else [])
    listed, left = "", len(names)
    for (before, after), numbers in alike.items():
        one = f"{before}{_ranges(numbers)}{after}"
        if len(listed) + len(one) > room:
            return f"{listed or one[:room]} and {left} more", left
        listed, left = f"{listed}, {one}" if listed else one, left - max(1, len(numbers))
    return listed, 0


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2+7` for 0, 1, 2 and 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "+".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _found(folder: HfFolder, name: str, wanted: Shape) -> str | None:
    """What is wrong with a tensor's shape or type; None if nothing is."""
    shape, dtype = folder.tensors.shape(name), folder.tensors.dtype(name)
    if shape == wanted and dtype in _SIZES:
        return None
    return f"{name} is {dtype} {list(shape)}, want {list(wanted)}"


def write_parts(path: Path, folder: HfFolder, parts: Sequence[Part]) -> None:
    """Write parts to a safetensors file, in the types they have, holding one at a time."""
    header, end = {}, 0
    for part in parts:
        dtype, shape = folder.tensors.dtype(part.source), part.taken_shape
        begin, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[part.name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays_of(folder, parts):
            file.write(np.ascontiguousarray(array).view(np.uint8).data)


def arrays_of(folder: HfFolder, parts: Iterable[Part]) -> Iterator[Array]:
    """The tensors of parts, one by one.

    Raises:
        CheckpointError: one holds a number that is not finite.
    """
    for part in parts:
        array = part.take(folder.tensors[part.source])
        if not np.isfinite(array).all():
            raise CheckpointError(f"{folder.path}: {part.source} holds NaN or infinity")
        yield array
