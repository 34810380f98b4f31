"""Outputs that are no files: a pipe is refused before any work, a link does not harm its target."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_bundle import write_bundle
from tiny_vqt import header, segment

from vqedge.commands.encode import run_encode
from vqedge.errors import UsageError, VqtError
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.stored import write_stored
from vqedge_runtime.viz import writer_for


@pytest.fixture
def batch(tmp_path: Path) -> BatchEncoder:
    return BatchEncoder(FakeEncoder(32, 576), write_bundle(tmp_path / "b.vqedge").manifest, 32)


def test_a_pipe_is_no_place_for_tokens_or_pictures(
    batch: BatchEncoder, tmp_path: Path, demo_clip: Path
) -> None:
    pipes = [tmp_path / name for name in ("a.vqt", "a.png")]
    for pipe in pipes:
        os.mkfifo(pipe)
    (outcome,) = batch.run([Job(demo_clip, pipes[0])])
    assert outcome.error == f"{pipes[0]}: is a pipe or a device; give a file's name, or -o -"
    assert batch.opened is None
    with pytest.raises(VqtError, match=r"is there and no \.vqt"):
        write_stored(pipes[0], header(), segment(0))
    with pytest.raises(UsageError, match=r"a\.png: is a pipe or a device; give a file's name"):
        writer_for(pipes[1])
    assert all(pipe.is_fifo() for pipe in pipes)


def test_a_link_is_replaced_and_what_it_leads_to_stays(
    batch: BatchEncoder, tmp_path: Path, demo_clip: Path
) -> None:
    video, link = tmp_path / "video.mp4", tmp_path / "a.vqt"
    video.write_bytes(demo_clip.read_bytes())
    link.symlink_to(video)
    (outcome,) = batch.run([Job(video, link)])
    assert not outcome.error and not link.is_symlink()
    assert video.read_bytes() == demo_clip.read_bytes()


@pytest.mark.parametrize("name", ["pipe", "pipe.vqt"])
def test_encode_refuses_a_pipe_by_the_name_it_was_given(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name}: is a pipe or a device"):
        run_encode([tmp_path / "none.mp4"], str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
