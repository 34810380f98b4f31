"""Training runs of seconds, for the tests of this folder."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def train_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny language model, no backbone, and a cache that holds random clips."""
    from tiny_run import CONFIG, OTHER, fill_cache, fill_features, tiny_training

    cache = tmp_path_factory.mktemp("cache")
    for config, seed in itertools.product((CONFIG, OTHER), (1, 2, 3)):
        fill_cache(cache, config, seed)
    for seed in (1, 2):
        fill_features(cache, CONFIG, seed)
    with tiny_training(cache):
        yield cache


@pytest.fixture(scope="module")
def _whole(train_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_run import config_for, run

    output = tmp_path_factory.mktemp("run") / "whole"
    run(config_for(output))
    return output


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A run that nothing interrupted, to do with as a test likes."""
    return Path(shutil.copytree(_whole, tmp_path / "whole"))
