"""What needs a folder for temporary files says so where there is none; what needs none goes on."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vqedge.commands import bench, doctor
from vqedge.commands.encode import _jobs
from vqedge.commands.pipe import STDIN, given_video
from vqedge.errors import ConfigError, VqedgeError
from vqedge.temporary import temporary_folder
from vqedge_export.tensorrt.build import run_job
from vqedge_export.tensorrt.job import Job


@pytest.fixture(autouse=True)
def _no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose disks are all read-only."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)


def piped_in() -> None:
    with given_video(STDIN):
        pass


def piped_out() -> None:
    with _jobs([Path(__file__)], "-"):
        pass


NEEDING: list[Callable[[], object]] = [
    piped_in,
    piped_out,
    lambda: bench.run_bench(None),
    lambda: run_job(Job(flavour="tensorrt")),
]


@pytest.mark.parametrize("needing", NEEDING, ids=["stdin", "stdout", "bench", "build"])
def test_no_place_for_temporary_files_is_told(needing: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"no folder .* be made \(No usable .*; set TMPDIR to"):
        needing()


def test_a_video_that_is_given_is_timed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise VqedgeError("the bundle is opened")

    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(bench, "open_session", opened)
    with pytest.raises(VqedgeError, match="the bundle is opened"):
        bench.run_bench(tmp_path / "a.mp4")


def test_the_doctor_does_not_call_a_machine_unable_for_it() -> None:
    (line,) = doctor._video(None)
    assert (line.ok, line.required) == (False, False)
    assert "TMPDIR" in line.fix


def test_what_is_left_in_the_folder_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    with temporary_folder() as folder:
        (folder / "a").touch()
    assert folder.parent == tmp_path and not folder.exists()
