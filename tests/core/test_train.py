"""A run killed and resumed is the run that was never killed; and what training refuses."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import CODES, CONFIG, random_codes, random_maps, tiny_llm, tiny_tokenizer
from typer.testing import CliRunner

import vqedge.train as training
from vqedge.cli import app
from vqedge.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    QuantizerConfig,
    TrainConfig,
    train_config_from_yaml,
)
from vqedge.data.cache import SHARD_CLIPS, cache_folder
from vqedge.errors import CheckpointError, ConfigError
from vqedge.model.checkpoint import (
    LORA,
    METRICS,
    MODEL,
    POSITION,
    load_bridge,
    load_tensors,
    open_checkpoint,
)
from vqedge.model.encoder import Bridge
from vqedge.train import LOG, STATE, learning_rate_factor, train

ROOT = Path(__file__).parents[2]
STEPS, CLIPS = 4, 3
OTHER = CONFIG.model_copy(update={"quantizer": QuantizerConfig(codes=CODES, iterations=3)})


@pytest.fixture(scope="module", autouse=True)
def _tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tiny language model, no backbone, and a cache that holds random clips."""
    cache = tmp_path_factory.mktemp("cache")
    for config, seed in itertools.product((CONFIG, OTHER), (1, 2)):
        _fill_cache(cache, config, seed)
    position = torch.randn(1, 1 + 64, 384, generator=torch.Generator().manual_seed(5))
    quantizer = SimpleNamespace(vit=SimpleNamespace(position=position))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQEDGE_CACHE", str(cache))
        patch.setattr(training, "clip_quantizer", lambda _config: quantizer)
        patch.setattr(training, "fetch", lambda name: SimpleNamespace(path=Path(name)))
        patch.setattr(training, "tokenizer_from_gguf", lambda _path: tiny_tokenizer())
        patch.setattr(training, "llm_from_gguf", lambda _path: tiny_llm())
        yield


def _fill_cache(root: Path, config: ModelConfig, seed: int) -> None:
    folder = cache_folder(root, config.encoder, config.quantizer, seed)
    folder.mkdir(parents=True)
    tensors = {
        "codes": random_codes(SHARD_CLIPS, seed).half(),
        "indices": random_maps(SHARD_CLIPS, seed).to(torch.uint8),
    }
    save_file(tensors, folder / "clips-00000.safetensors")


def config_for(output: Path, steps: int = STEPS, **changes: Any) -> TrainConfig:
    optim = OptimConfig(steps=steps, clips_per_step=2, warmup_steps=2, naming_steps=1)
    values: dict[str, Any] = {
        "model": CONFIG,
        "data": DataConfig(clips=CLIPS, questions_per_clip=2),
        "optim": optim,
        "output": output,
        "save_every": 2,
        "validation_clips": 2,
    }
    return TrainConfig(**values | changes)


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / LOG).read_text().splitlines()]


def kill_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """The next run dies before this step, once."""
    step = training._Run.step

    def dying(run: training._Run, number: int) -> dict[str, Any]:
        if number == fatal:
            monkeypatch.setattr(training._Run, "step", step)
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(training._Run, "step", dying)


@pytest.fixture(scope="module")
def _whole(_tiny_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "whole"
    train(config_for(output))
    return output


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A run that nothing interrupted, to do with as a test likes."""
    return Path(shutil.copytree(_whole, tmp_path / "whole"))


@pytest.mark.parametrize("fatal", [0, 1, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, fatal: int
) -> None:
    killed = tmp_path / "killed"
    kill_at(monkeypatch, fatal)
    with pytest.raises(KeyboardInterrupt):
        train(config_for(killed))
    torch.manual_seed(99)  # a new process has another random state
    train(config_for(killed), resume=True)
    for name in (STATE, MODEL, LORA):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert torch.equal(found[tensor], value), f"{name}: {tensor}"
    assert log_of(killed)[-1]["loss"] == log_of(whole)[-1]["loss"]
    assert [record["step"] for record in log_of(killed)] == [1, 2, 3, 4]


def test_a_log_line_cut_off_by_a_kill_is_dropped(whole: Path) -> None:
    with (whole / LOG).open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 0.1}\n{"step": 6, "lo')
    train(config_for(whole), resume=True)
    assert [record["step"] for record in log_of(whole)] == [1, 2, 3, 4]


def test_bridge_and_adapter_learn_and_the_backbone_stays(tmp_path: Path, whole: Path) -> None:
    train(config_for(tmp_path / "short", steps=1))
    for name in (MODEL, LORA):
        one, four = load_file(tmp_path / "short" / name), load_file(whole / name)
        changed = {tensor for tensor in one if not torch.equal(one[tensor], four[tensor])}
        assert len(changed) > 0.9 * len(one)
    assert torch.equal(
        load_file(tmp_path / "short" / MODEL)[POSITION], load_file(whole / MODEL)[POSITION]
    )


def test_the_checkpoint_opens_and_holds_the_trained_weights(whole: Path) -> None:
    checkpoint = open_checkpoint(whole)
    assert checkpoint.config == CONFIG
    bridge, tensors = Bridge(CONFIG), load_tensors(whole / MODEL)
    load_bridge(bridge, tensors)
    trained = load_file(whole / STATE)
    for name, value in bridge.state_dict().items():
        assert torch.equal(value.half(), trained[f"weight.bridge.{name}"].half()), name
    assert tensors[POSITION].dtype == torch.float32
    metrics = json.loads((whole / METRICS).read_text())
    assert metrics["step"] == STEPS and "exact_match" in metrics["validation"]


def test_every_step_is_logged(whole: Path) -> None:
    log = log_of(whole)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert ["validation" in record for record in log] == [False, True, False, True]
    assert all(record["loss"] > 0 and record["gradient_norm"] > 0 for record in log)


def test_a_finished_run_may_be_resumed_and_lengthened(whole: Path) -> None:
    before = load_file(whole / MODEL)
    assert train(config_for(whole), resume=True).path == whole
    assert all(torch.equal(value, before[name]) for name, value in load_file(whole / MODEL).items())
    train(config_for(whole, steps=6), resume=True)
    assert [record["step"] for record in log_of(whole)] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_not_overwritten(whole: Path) -> None:
    before = (whole / STATE).read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume"):
        train(config_for(whole))
    assert (whole / STATE).read_bytes() == before


def test_another_model_does_not_go_on_from_it(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="another model configuration"):
        train(config_for(whole, model=OTHER), resume=True)


def test_all_clips_come_once_an_epoch_and_the_order_changes() -> None:
    numbers = [n for step in range(6) for n in training._clips_of_step(step, 4, 12, seed=0)]
    epochs = numbers[:12], numbers[12:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_the_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1.0 and factors[99] == pytest.approx(0.05, abs=1e-3)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.525)


def test_weights_that_do_not_fit_are_refused(whole: Path, tmp_path: Path) -> None:
    tensors = load_tensors(whole / MODEL)
    del tensors["bridge.attention.scale"]
    with pytest.raises(CheckpointError, match=r"attention\.scale") as caught:
        load_bridge(Bridge(CONFIG), tensors)
    assert "\n" not in str(caught.value)
    (tmp_path / "broken").write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_tensors(tmp_path / "broken")
    (whole / LORA).unlink()
    with pytest.raises(CheckpointError, match=f"no {LORA}"):
        open_checkpoint(whole)


def test_a_configuration_of_another_version_is_refused(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    config["quantizer"]["kind"] = "product"
    (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: .*kind"):
        open_checkpoint(whole)


# ---- the configuration


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {steps: 7}\ndata: {clips: 9}\n")
    return path


def test_a_recipe_with_overrides(recipe: Path) -> None:
    config = train_config_from_yaml(recipe, ["optim.steps=3", "output=runs/x", "model.llm.width=8"])
    assert (config.optim.steps, config.data.clips, config.output) == (3, 9, Path("runs/x"))
    assert config.model.llm.width == 8


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert train_config_from_yaml(path).model.quantizer.codes > 0


FAULTS = {
    "optim.stepz: Extra inputs": ["optim.stepz=3"],
    "extra: Extra inputs": ["extra=1"],
    "optim.steps: Input should be greater than 0": ["optim.steps=0"],
    "optim.steps: Input should be a valid integer": ["optim.steps=many"],
    "an override reads key.sub=value": ["optim.steps"],
    "precision: Input should be 'fp32' or 'bf16'": ["precision=int4"],
    "'clips' is a value, it holds no keys": ["data.clips.more=1"],
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_bad_override_is_named(recipe: Path, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config_from_yaml(recipe, FAULTS[problem])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["optim: {steps: [", "- just\n- a list\n", "just words", "\xff"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml: ") as caught:
        train_config_from_yaml(path, ["seed=1"])
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; see recipes/tiny\.yaml"):
        train_config_from_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        train_config_from_yaml(tmp_path)


def test_the_command_says_what_is_wrong(recipe: Path) -> None:
    outcome = CliRunner().invoke(app, ["train", str(recipe), "optim.stepz=3"])
    assert isinstance(outcome.exception, ConfigError)
    assert str(outcome.exception).startswith(f"{recipe}: optim.stepz")
