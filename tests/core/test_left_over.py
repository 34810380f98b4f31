"""What a killed `vqedge encode` left goes with the next into the same folder."""

from __future__ import annotations

import os
from pathlib import Path

from tiny_bundle import write_bundle

from vqedge.files import replacing
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.encoders.fake import FakeEncoder


def test_an_encode_removes_what_a_killed_one_left(tmp_path: Path, demo_clip: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left = out / ".vqedge-0123.tmp"
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    with replacing(out / "b.vqt") as written:  # by another one, at the same time
        for path in (left, written):
            path.write_bytes(b"half")
            os.utime(path, (0, 0))
        batch = BatchEncoder(FakeEncoder(32, 576), manifest, 32)
        outcomes = list(batch.run([Job(demo_clip, out / f"{name}.vqt") for name in ("a", "c")]))
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert {*out.iterdir()} == {out / "a.vqt", out / "c.vqt", written}
    assert (out / "b.vqt").read_bytes() == b"half"
