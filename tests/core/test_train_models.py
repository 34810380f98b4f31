"""What training does to each kind of model, and where it may start from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import CODE_WIDTH, CONFIG, tiny_llm
from tiny_run import (
    IN_WORDS,
    LEARNED,
    STEPS,
    config_for,
    killed_and_resumed,
    log_of,
    reducer_weights,
    run,
)
from torch import Tensor
from torch._inductor.exc import InductorError

from vqedge.checkpoint import steps_of
from vqedge.errors import CheckpointError, ConfigError
from vqedge.model.checkpoint import (
    BRIDGE_PREFIX,
    LORA,
    METRICS,
    MODEL,
    POSITION,
    load_bridge,
    load_reducer,
    load_tensors,
    open_checkpoint,
    start_from,
)
from vqedge.model.encoder import Bridge, quantizer_from_config, trained_bridge
from vqedge.model.llm import compile_blocks, hidden_states, with_lora
from vqedge.model.reducers.training import REDUCER_PREFIX, ReducerWithWeights
from vqedge.recipe import OptimConfig
from vqedge.training.folder import STATE
from vqedge.training.run import compiles

pytestmark = pytest.mark.usefixtures("train_cache")
compiling = pytest.mark.filterwarnings("ignore")
"""Of a test that compiles: PyTorch imports and touches what is deprecated, whatever ran before."""


@pytest.mark.slow
@compiling
def test_compiled_blocks_have_the_same_gradients() -> None:
    torch.manual_seed(2)
    rows, positions = torch.randn(2, 7, CONFIG.llm.width), torch.arange(7).expand(2, 7)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 7, 7)
    grads = []
    for prepare in (lambda _llm: None, compile_blocks):
        torch.manual_seed(4)
        llm = with_lora(tiny_llm(), CONFIG.llm)
        trained = {name: weight for name, weight in llm.named_parameters() if weight.requires_grad}
        for weight in trained.values():  # half of them start at zero
            torch.nn.init.normal_(weight, std=0.3)
        prepare(llm)
        hidden_states(llm, rows, allowed, positions).square().sum().backward()
        grads.append({name: weight.grad for name, weight in trained.items()})
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)
    assert all(grad.abs().max() > 1e-3 for grad in grads[0].values())


class Waves(torch.nn.Module):
    """Something to compile."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.sin() + rows.cos()


@compiling
@torch.no_grad()
def test_a_compiler_that_does_not_work_is_done_without() -> None:
    """Unless compiling was asked for."""
    rows, block = torch.randn(2, 4), Waves()
    llm = SimpleNamespace(model=SimpleNamespace(layers=[block]))
    plain = block(rows)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        compile_blocks(llm, fall_back=True)
        assert torch.equal(block(rows), plain)
        torch.compiler.reset()
        compile_blocks(llm)
        with pytest.raises(InductorError, match=r"No working C\+\+ compiler"):
            block(rows)


@pytest.mark.parametrize("wanted", [None, True, False])
@pytest.mark.parametrize("steps", [99, 100])
@pytest.mark.parametrize("compiler", ["sh", "no-such-compiler"])
def test_blocks_are_compiled_where_it_is_worth_it_and_can_be(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    wanted: bool | None,
    steps: int,
    compiler: str,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    config = config_for(tmp_path, optim=OptimConfig(steps=steps, compile=wanted))
    there = compiler == "sh"
    if wanted and not there:
        with pytest.raises(ConfigError, match=r"optim\.compile: .* finds no C\+\+ compiler"):
            compiles(config, torch.device("cpu"))
        return
    compiled = compiles(config, torch.device("cpu"))
    asked = steps == 100 if wanted is None else wanted
    assert compiled == (asked and there)
    assert ("twice as long" in caplog.text) == (asked and not there)


def test_bridge_and_adapter_learn_and_the_backbone_stays(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "short", steps=1))
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


def test_gradients_accumulate_to_the_whole_step(tmp_path: Path) -> None:
    """Two parts of a clip each give the step of both, however long the answers of each are."""
    optim = OptimConfig(steps=1, clips_per_step=2, warmup_steps=1, naming_steps=0)
    parts = optim.model_copy(update={"accumulate": 2})
    run(config_for(tmp_path / "whole", optim=optim))
    run(config_for(tmp_path / "parts", optim=parts))
    one, two = (log_of(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    assert two["exact_match"] == one["exact_match"]


def test_a_codebook_is_fitted_trained_reported_and_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config_for(tmp_path / "whole", model=LEARNED))
    tables = load_file(tmp_path / "whole" / MODEL)["bridge.codebook.tables"]
    assert tables.shape == (2, 6, CODE_WIDTH)
    usage = log_of(tmp_path / "whole")[-1]["codebook"]
    assert 0 < usage["usage"][0] <= 1 and 1 <= usage["perplexity"][0] <= 6
    expected = load_file(tmp_path / "whole" / STATE)
    found = killed_and_resumed(monkeypatch, config_for(tmp_path / "killed", model=LEARNED))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_codebook_may_start_from_a_checkpoint_without_one(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "on", steps=1, model=LEARNED, init=whole))
    assert open_checkpoint(tmp_path / "on").config == LEARNED


def test_a_narrow_codebook_takes_of_another_bridge_what_does_not_read_codes(
    tmp_path: Path, whole: Path
) -> None:
    quantizer = LEARNED.quantizer.model_copy(update={"codebook_width": 5})
    narrow = LEARNED.model_copy(update={"quantizer": quantizer})
    bridge, llm = trained_bridge(narrow), with_lora(tiny_llm(), narrow.llm)
    fresh = {name: value.clone() for name, value in bridge.state_dict().items()}
    assert not start_from(whole, narrow, bridge, llm)
    kept = load_file(whole / MODEL)
    for name, value in bridge.state_dict().items():
        new = name.startswith(("codebook.", "attention.code"))
        expected = fresh[name] if new else kept[f"{BRIDGE_PREFIX}{name}"].float()
        assert torch.equal(value, expected), name
    run(config_for(tmp_path / "on", steps=1, model=narrow, init=whole))
    assert "naming" in log_of(tmp_path / "on")[0]
    assert load_file(tmp_path / "on" / MODEL)["bridge.codebook.tables"].shape == (2, 6, 5)


def test_words_take_the_adapter_of_another_model_and_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    run(config_for(tmp_path / "words", model=IN_WORDS, init=whole))
    first, *_, last = log_of(tmp_path / "words")
    assert "naming" in first and last["codebook"]["rows"]
    tensors = load_file(tmp_path / "words" / MODEL)
    assert tensors["bridge.codebook.tables"].shape == (2, 6, 7)
    bridge = trained_bridge(IN_WORDS)
    load_bridge(bridge, tensors)
    kept = bridge.table.clone()
    bridge.finish()
    torch.testing.assert_close(bridge.table, kept, atol=0.02, rtol=0.01)  # weights were rounded
    expected = load_file(tmp_path / "words" / STATE)
    found = killed_and_resumed(
        monkeypatch, config_for(tmp_path / "killed", model=IN_WORDS, init=whole)
    )
    differing = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not differing


def test_words_may_be_told_apart_more_finely_than_where_they_start_from(tmp_path: Path) -> None:
    coarse = tmp_path / "coarse"
    run(config_for(coarse, steps=1, model=IN_WORDS))
    tensors = load_file(coarse / MODEL)
    tensors["bridge.table"] = tensors["bridge.table"][:-100].clone()  # of fewer words
    save_file(tensors, coarse / MODEL, safe_open(coarse / MODEL, framework="pt").metadata())
    bridge, llm = trained_bridge(IN_WORDS), with_lora(tiny_llm(), IN_WORDS.llm)
    assert start_from(coarse, IN_WORDS, bridge, llm)
    weights = {name: value for name, value in tensors.items() if name != "bridge.table"}
    found = bridge.state_dict()
    for name in (name for name in weights if name.startswith(BRIDGE_PREFIX)):
        assert torch.equal(found[name.removeprefix(BRIDGE_PREFIX)], weights[name].float()), name


GROUPED = CONFIG.model_copy(
    update={
        "quantizer": CONFIG.quantizer.model_copy(update={"kind": "reducer:group-queries"}),
    }
)


def test_a_reducer_with_weights_is_trained_kept_and_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config_for(tmp_path / "grouped", model=GROUPED))
    first, *_, last = log_of(tmp_path / "grouped")
    assert "naming" in first and "exact_match" in last["validation"]
    run(config_for(tmp_path / "short", model=GROUPED, steps=1))
    weights, early = (reducer_weights(tmp_path / name) for name in ("grouped", "short"))
    assert len(weights) == 5 and all(name.startswith(REDUCER_PREFIX) for name in weights)
    assert not any(torch.equal(early[name], value) for name, value in weights.items())
    quantizer = quantizer_from_config(GROUPED)
    load_reducer(quantizer, weights)
    kept = weights[f"{REDUCER_PREFIX}queries"].float()
    assert torch.equal(quantizer.get_parameter("reducer.queries"), kept)
    expected = load_file(tmp_path / "grouped" / STATE)
    found = killed_and_resumed(monkeypatch, config_for(tmp_path / "killed", model=GROUPED))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_reducer_may_start_from_a_checkpoint_with_or_without_it(
    tmp_path: Path, whole: Path
) -> None:
    run(config_for(tmp_path / "grouped", steps=1, model=GROUPED, init=whole))
    name = f"{REDUCER_PREFIX}queries"
    llm, reducer = with_lora(tiny_llm(), GROUPED.llm), ReducerWithWeights(GROUPED)
    assert start_from(tmp_path / "grouped", GROUPED, trained_bridge(GROUPED), llm, reducer)
    kept = load_tensors(tmp_path / "grouped" / MODEL)[name].float()
    assert torch.equal(reducer.quantizer.get_parameter("reducer.queries"), kept)


def test_steps_count_from_what_a_run_started_from(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "on", steps=1, init=whole))
    run(config_for(tmp_path / "further", steps=2, init=tmp_path / "on"))
    assert [steps_of(folder) for folder in (whole, tmp_path / "on", tmp_path / "further")] == [
        STEPS,
        STEPS + 1,
        STEPS + 3,
    ]


def test_a_run_may_start_from_a_checkpoint(tmp_path: Path, whole: Path) -> None:
    slow = OptimConfig(steps=1, learning_rate=1e-12, bridge_learning_rate=1e-12, naming_steps=1)
    run(
        config_for(tmp_path / "on", optim=slow.model_copy(update={"clips_per_step": 2}), init=whole)
    )
    for name in (MODEL, LORA):
        old, new = load_file(whole / name), load_file(tmp_path / "on" / name)
        assert all(torch.equal(new[tensor], value) for tensor, value in old.items()), name
    with pytest.raises(CheckpointError, match="cannot start from it, its encoder differs"):
        other = CONFIG.model_copy(
            update={"encoder": CONFIG.encoder.model_copy(update={"block": 3})}
        )
        start_from(whole, other, Bridge(other), None)
