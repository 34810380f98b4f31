"""The configuration of a checkpoint, before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_baselines import OURS, write_checkpoint

from vqedge.checkpoint import CONFIG, model_config_of
from vqedge.errors import CheckpointError


def test_a_key_of_a_configuration_is_not_repeated(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ours")
    assert model_config_of(folder) == OURS
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text[:-1] + ', "quantizer": {}}')
    with pytest.raises(
        CheckpointError, match=r"config\.json: a key is repeated: 'quantizer'; copy"
    ):
        model_config_of(folder)
