"""Compares ids with the golden ones: generated clips whose ids are in tests/golden/ids.json.

    python scripts/_ids.py BUNDLE [--checkpoint models/tiny] [--threads N] [--write] [--new]

PyTorch (with --checkpoint) and every encoder backend of the bundle that runs here, a line each, and
with --write in docs/measured/ids.json. --new makes the golden file from the PyTorch checkpoint: do
that when encoder or quantizer change on purpose, never to make a test pass.
"""

from __future__ import annotations

import argparse
import base64
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqedge.agreement import matched_share
from vqedge.bundle import open_bundle
from vqedge.data.generated import GeneratedClips
from vqedge.errors import VqedgeError
from vqedge_runtime.encoders import ENCODERS
from vqedge_runtime.encoders.auto import candidates

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden/ids.json"
OUT = ROOT / "docs/measured/ids.json"
SEED, CLIPS, FRAMES, SIZE = 7, 8, 8, 224
BUDGETS = (8, 32)

Ids = npt.NDArray[np.int32]
Encode = Callable[[npt.NDArray[np.uint8], int], Ids]


@dataclass(frozen=True)
class Golden:
    """A clip of the generated world with its ids, int32 `[frames * grid * grid]`."""

    number: int
    budget: int
    ids: Ids

    def frames(self) -> npt.NDArray[np.uint8]:
        """Draw the clip."""
        return GeneratedClips(SEED, self.number + 1)[self.number].frames(FRAMES, SIZE)


@dataclass(frozen=True)
class Flips:
    """How far ids are from the golden ones.

    Attributes:
        clips: how many clips and budgets were compared.
        clips_same: of them, those with every id the same.
        ids_differ: share of patches with another id.
        maps_differ: share of patches in another part of the map, once ids are matched.
    """

    clips: int
    clips_same: int
    ids_differ: float
    maps_differ: float


def golden() -> list[Golden]:
    """What is in the file."""
    rows = json.loads(GOLDEN.read_text(encoding="utf-8"))["clips"]
    return [Golden(row["number"], row["budget"], _unpacked(row["ids"])) for row in rows]


def flips(encode: Encode, wanted: Sequence[Golden]) -> Flips:
    """Encode the golden clips again."""
    found = [encode(item.frames(), item.budget).reshape(-1) for item in wanted]
    pairs = [(item.ids, ids) for item, ids in zip(wanted, found, strict=True)]
    differ = [float((a != b).mean()) for a, b in pairs]
    maps = [1.0 - matched_share(a, b) for a, b in pairs]
    return Flips(len(pairs), differ.count(0.0), float(np.mean(differ)), float(np.mean(maps)))


def from_checkpoint(path: Path) -> Encode:
    """PyTorch."""
    import torch

    from vqedge.model.checkpoint import open_checkpoint

    encoder = open_checkpoint(path).encoder()

    def encode(frames: npt.NDArray[np.uint8], budget: int) -> Ids:
        with torch.inference_mode():
            encoded = encoder(torch.from_numpy(frames), torch.tensor(budget))
        return np.asarray(encoded.index_map.numpy(), np.int32)

    return encode


def backends(path: Path, threads: int | None) -> Iterator[tuple[str, Flips]]:
    """Every encoder backend of a bundle that runs here."""
    bundle = open_bundle(path)
    wanted = golden()
    for name in candidates(bundle):
        try:
            encoder = ENCODERS[name].open(bundle, threads)
        except VqedgeError as error:
            print(f"{name}: {error}")
            continue
        with closing(encoder):
            yield encoder.name, flips(lambda f, k, e=encoder: e.encode(f, k).index_map, wanted)


def write_golden(checkpoint: Path) -> None:
    """Ids of clips that went through no video codec: those depend on its version."""
    clips = GeneratedClips(SEED, 1000)
    numbers = [i for i in range(1000) if clips[i].scene.crf is None][:CLIPS]
    items = [Golden(i, k, np.zeros(0, np.int32)) for i in numbers for k in BUDGETS]
    encode = from_checkpoint(checkpoint)
    rows = [
        {
            "number": item.number,
            "budget": item.budget,
            "ids": _packed(encode(item.frames(), item.budget)),
        }
        for item in items
    ]
    GOLDEN.write_text(json.dumps({"seed": SEED, "clips": rows}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Compare, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--new", action="store_true")
    arguments = parser.parse_args()
    if arguments.new:
        write_golden(arguments.checkpoint or ROOT / "models/tiny")
    found: dict[str, Any] = {}
    if arguments.checkpoint:
        found["PyTorch"] = asdict(flips(from_checkpoint(arguments.checkpoint), golden()))
    if arguments.bundle:
        found |= {name: asdict(row) for name, row in backends(arguments.bundle, arguments.threads)}
    for name, row in found.items():
        print(f"{name}: {json.dumps(row)}")
    if arguments.write:
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _packed(ids: Ids) -> str:
    return base64.b64encode(zlib.compress(ids.astype(np.uint8).tobytes(), 9)).decode()


def _unpacked(text: str) -> Ids:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int32)


if __name__ == "__main__":
    main()
