"""What fuzzers share: targets, made inputs to start from, and two ways to change those.

    python tests/fuzz/fuzzing.py TARGET SECONDS

lets atheris look for inputs that reach new code (`pip install 'vqedge[fuzz]'`). The tests do
without: `mutations` are as random as they come, and the same at every run.

A target is a module here with `MAX_BYTES`, `seeds()`, which are made, not stored, and
`one_input(data)`, which raises at a finding.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

TARGETS = {
    "fuzz_vqt": "vqedge_runtime.vqt",
    "fuzz_manifest": "vqedge.bundle",
    "fuzz_hf": "vqedge_export.hf",
    "fuzz_kv": "vqedge_runtime.kv",
    "fuzz_index": "vqedge_runtime.search",
}
"""By module, the package under test."""

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 32767, 65535, 1 << 31, (1 << 32) - 1, (1 << 64) - 1)
_WORDS = (b"", b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"..\\u0000/"', b"\xff")


def mutations(seeds: Sequence[bytes], count: int, max_bytes: int) -> Iterator[bytes]:
    """The seeds, then as many inputs near them."""
    rng = random.Random(0)
    yield from seeds
    for _ in range(count):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = rng.choice(_CHANGES)(rng, data)
        yield data[:max_bytes]


def _cut(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _twice(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:end] + data[begin:]


def _moved(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[begin:end] + data[at + end - begin :]


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _odd_integer(rng: random.Random, data: bytes) -> bytes:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = rng.randrange(len(data) + 1)
    number = rng.choice(_NUMBERS) % (1 << 8 * width)
    return data[:at] + number.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]


def _odd_value(rng: random.Random, data: bytes) -> bytes:
    """One number or string of a text in place of another, or what is neither."""
    places = [found.span() for found in re.finditer(rb'\d+|"[^"\n]{0,80}"', data)]
    if not places:
        return data
    begin, end = rng.choice(places)
    others = [data[slice(*rng.choice(places))], str(rng.choice(_NUMBERS)).encode()]
    return data[:begin] + rng.choice((*others, *_WORDS)) + data[end:]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 8, 64, 512)))


_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut,
    _twice,
    _moved,
    _flipped,
    _odd_integer,
    _odd_value,
)


def main(name: str, seconds: str) -> None:
    """Fuzz a target for so long."""
    import atheris

    with atheris.instrument_imports(include=[TARGETS[name], "vqedge.base.tensors"]):
        target = import_module(name)
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(data)
        flags = [f"-max_total_time={seconds}", f"-max_len={target.MAX_BYTES}", "-timeout=10"]
        flags += ["-rss_limit_mb=2048", "-verbosity=1", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, corpus], target.one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    for folder in ("core", "fakes", "runtime"):
        sys.path.append(str(Path(__file__).parents[1] / folder))
    main(*sys.argv[1:])
