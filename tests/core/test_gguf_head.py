"""The head of a GGUF file is walked before it is believed."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import pytest
from tiny_gguf import wild_tensors, write_gguf

from vqedge.commands.inspect import facts_of
from vqedge.errors import BundleError, CheckpointError
from vqedge.gguf_head import MOST_VALUES, check_head
from vqedge.model.gguf_reading import parsed_once, sound_reader

UINT8, TEXT, LIST = 0, 8, 9


def head(keys: bytes, key_count: int = 1, tensor_count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count) + keys


def key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q1sI", 1, b"k", kind) + value


def listed(kind: int, count: int) -> bytes:
    return key(LIST, struct.pack("<IQ", kind, count))


HOSTILE = {
    "more than": head(listed(UINT8, 10**10)),
    "more than 4194304": head(listed(UINT8, MOST_VALUES) + bytes(MOST_VALUES) + listed(0, 1), 2),
    "ends before": head(listed(UINT8, MOST_VALUES)),
    "it ends": head(listed(TEXT, MOST_VALUES) + bytes(80)),
    "before what": head(key(TEXT, struct.pack("<Q", 1 << 63))),
    "a list of lists": head(listed(LIST, 1) + bytes(12)),
    "type 77": head(key(77, bytes(8))),
    "head counts": head(b"", 0, tensor_count=1 << 60),
    "what its": head(struct.pack("<Q1sI", 1, b"t", 1 << 31), 0, tensor_count=1),
    "version 1": head(b"", 0, version=1),
    "it does not begin": b"GGML" + bytes(60),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_a_head_that_promises_too_much(tmp_path: Path, why: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[why])
    began_s = time.perf_counter()
    with pytest.raises(BundleError, match=f"not a readable GGUF file .*{why}"):
        facts_of(path)
    with pytest.raises(CheckpointError, match=f"a.gguf: not a readable GGUF file .*{why}"):
        sound_reader(path)
    with parsed_once(), pytest.raises(CheckpointError, match=why):
        gguf.GGUFReader(str(path))
    assert time.perf_counter() - began_s < 10.0, "it is refused before anything is made of it"


@pytest.mark.parametrize("endian", gguf.GGUFEndian)
def test_what_gguf_writes_is_sound(tmp_path: Path, endian: gguf.GGUFEndian) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for number, (name, value) in enumerate({"bool": True, "float64": 0.5, "string": "a"}.items()):
        getattr(writer, f"add_{name}")(f"one.{number}", value)
        writer.add_array(f"many.{number}", [value] * 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    check_head(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends before"):
        check_head(path)


def test_a_model_is_sound(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "wild.gguf", wild_tensors())
    check_head(path)
    assert sound_reader(path).tensors
