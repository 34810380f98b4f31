"""What all tests share: base weights if they are there, golden files, a clean environment."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from vqedge.base.fetch import cached
from vqedge.cores import usable_cores
from vqedge.files import cache_root

if TYPE_CHECKING:
    import gguf

    from vqedge_runtime import VideoQA

ROOT = Path(__file__).parents[1]
_DOWNLOADED = ("base", "downloads", "locks", "wheels")  # what tests share with the user's cache


def _own_cores() -> None:
    """Of several processes that share a run each keeps to cores of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        own = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: count]
        if own:
            os.sched_setaffinity(0, own)


_own_cores()
_THREADS = min(2, usable_cores())  # libraries read it when they load; CI has two cores
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    _told = os.environ.get(_name, "")  # OpenMP takes a list, too: one for each nested level
    os.environ[_name] = str(min(int(_told), _THREADS) if _told.isdecimal() else _THREADS)
settings.register_profile(  # no test is timed; inputs of CI are the same at every run
    "vqedge", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("vqedge")
# else inputs depend on which modules a process has loaded, which differs between runs
pytest.MonkeyPatch().setattr(providers, "_get_local_constants", Constants)
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns after a fork, and tests start processes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew; review the diff"
    )


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure and compile stays theirs; what was downloaded is there for them."""
    users, own = cache_root(), tmp_path_factory.mktemp("cache")
    for name in _DOWNLOADED:
        if (users / name).is_dir():
            (own / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQEDGE_CACHE", str(own))
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test's cache will be, with nothing in it."""
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lines that tell what to install begin with a plain `pip`."""
    monkeypatch.setattr("vqedge.packages._pip_is_ours", lambda: True)


@pytest.fixture(autouse=True)
def _no_bundle_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQEDGE_BUNDLE", raising=False)


def _base_weights(name: str) -> Path:
    found = cached(name)
    if found is None:
        pytest.skip(f"the base weights {name} are not in the cache; run: vqedge fetch")
    return found.path


@pytest.fixture(scope="session")
def vit_source() -> Path:
    """The backbone's ONNX file."""
    return _base_weights("dinov2-s14-focus")


@pytest.fixture(scope="session")
def base_gguf() -> Iterator[Path]:
    """The language model's GGUF file. It is parsed once for all tests: that takes seconds."""
    import gguf

    path, parse = _base_weights("smollm2-135m-instruct"), gguf.GGUFReader
    parsed = cache(lambda: parse(path))

    def read(file: str | Path, *mode: Any) -> gguf.GGUFReader:
        return parse(file, *mode) if mode or Path(file) != path else parsed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", read)
        yield path


@pytest.fixture(scope="session")
def checkpoint(vit_source: Path, base_gguf: Path) -> Path:
    """The trained checkpoint of the repository, with its base weights at hand."""
    return ROOT / "models" / "tiny"


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, assembled once. Do not write into it."""
    from vqedge_export.assemble import assemble_bundle

    out = tmp_path_factory.mktemp("bundle") / "tiny.vqedge"
    return assemble_bundle(checkpoint, out).root


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.vqedge"))


@pytest.fixture(scope="session")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo video: a red circle to the left, a blue square to the right."""
    from vqedge.data.demo import write_demo

    path = tmp_path_factory.mktemp("clip") / "demo.mp4"
    write_demo(path)
    return path


@pytest.fixture
def clip(demo_clip: Path, tmp_path: Path) -> Path:
    """The demo clip in the test's own folder."""
    return Path(shutil.copy(demo_clip, tmp_path / "demo.mp4"))


@pytest.fixture(scope="session")
def qa(bundle: Path) -> Iterator[VideoQA]:
    """The real bundle, open."""
    from vqedge_runtime import VideoQA

    with VideoQA.open(bundle, encoder="onnxruntime") as session:
        yield session


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT is a KeyboardInterrupt, also where a shell in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
