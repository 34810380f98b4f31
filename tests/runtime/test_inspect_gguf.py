"""Reading a GGUF file: one that is cut off in its head, and as plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import parrot_tensors, write_gguf

from vqedge.commands.inspect import facts_of
from vqedge.errors import BundleError

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", parrot_tensors()).read_bytes()


def test_a_cut_head_is_never_a_fault_of_ours(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    head = gguf.GGUFReader(path).data_offset
    assert facts_of(path)[1]["tensors"] > 0
    for size in range(0, head, 16):
        path = tmp_path / f"{size}.gguf"  # the one before may still be mapped by what failed
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match="not a readable GGUF file"):
            facts_of(path)


def test_the_plain_reader_reads_what_the_mapped_one_reads(whole: bytes, tmp_path: Path) -> None:
    from vqedge.model.gguf_reading import PlainReader

    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    plain, mapped = PlainReader(path), gguf.GGUFReader(path)
    assert type(plain.data) is np.ndarray and not plain.data.flags.writeable
    assert {name: field.contents() for name, field in plain.fields.items()} == {
        name: field.contents() for name, field in mapped.fields.items()
    }
    for one, two in zip(plain.tensors, mapped.tensors, strict=True):
        assert one.name == two.name and np.array_equal(one.data, two.data)
