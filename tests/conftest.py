"""What all tests share: base weights if they are there, golden files, a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqedge.base.fetch import cached

_THREADS = "2"  # libraries read it when they load; CI has two cores
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = min(os.environ.get(_name, _THREADS), _THREADS)
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns after a fork, and tests start processes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew; review the diff"
    )


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
def base_gguf() -> Path:
    """The language model's GGUF file."""
    return _base_weights("smollm2-135m-instruct")
