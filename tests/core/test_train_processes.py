"""Training in several processes, and what is told of where it trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType, str_to_bool
from safetensors.torch import load_file
from spread_run import OPTIM, PRECISIONS, spread_config
from tiny_model import CONFIG, tiny_llm, tiny_tokenizer
from tiny_run import MODELS, STEPS, config_for, log_of, run

from vqedge.errors import ConfigError
from vqedge.model.checkpoint import LORA, MODEL, load_lora, load_tensors
from vqedge.model.llm import decoder_of, with_lora
from vqedge.recipe import OptimConfig
from vqedge.training.folder import STATE, RunFolder
from vqedge.training.processes import accelerator_for, share_of, spreads_llm, told_of, workers_of
from vqedge.training.run import Run

pytestmark = pytest.mark.usefixtures("train_cache")


def launched(words: Sequence[object], cache: Path, **environment: str) -> None:
    """Run a launcher of Python's, its processes on one thread each."""
    environment |= {"OMP_NUM_THREADS": "1", "VQEDGE_CACHE": str(cache)}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=600)


@pytest.fixture(scope="module")
def together(train_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes that each hold the whole language model leave."""
    output = tmp_path_factory.mktemp("together")
    (output / "bad.mp4").touch()
    (output / "mine.jsonl").write_text('{"video": "bad.mp4", "question": "?", "answer": "a"}')
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("together_run.py")
    launched([*launch, script, output], train_cache, ACCELERATE_USE_CPU="true")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codes", "words"])
def test_two_processes_train_together(tmp_path: Path, together: Path, kind: str) -> None:
    """Each takes half of a step's clips; one of them writes."""
    run(config_for(tmp_path, model=MODELS[kind]))
    alone, both = log_of(tmp_path), log_of(together / kind)
    assert [record["step"] for record in both] == [0, 1, 2, 3, 4]
    for one, two in zip(alone[1:], both[1:], strict=True):
        near = 1e-3 if kind == "codes" else 0.3  # the codebook learns from a process's own codes
        assert two["loss"] == pytest.approx(one["loss"], rel=near)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=near)
    expected = load_file(tmp_path / LORA)
    found = load_file(together / kind / LORA)
    drift = [float((found[name] - value).abs().max()) for name, value in expected.items()]
    assert max(drift) < 5e-3  # Adam takes steps of rounding where a gradient is next to nothing


@pytest.mark.slow
def test_two_processes_refuse_a_bad_video_alike(together: Path) -> None:
    """Not one of them, and another that finds nobody to talk to."""
    told = [(together / f"told-{number}.txt").read_text() for number in range(2)]
    rest = "clips cannot be read; they are listed above: mend their videos, or take out their lines"
    assert told == [f"1 {rest}", f"some {rest}"]


@pytest.fixture(scope="module")
def spread_out(train_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes that spread the language model leave."""
    output = tmp_path_factory.mktemp("spread")
    launch = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    script = Path(__file__).with_name("spread_run.py")
    launched([*launch, script, output], train_cache, CUDA_VISIBLE_DEVICES="")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(PRECISIONS))
def test_two_processes_spread_the_language_model(spread_out: Path, kind: str) -> None:
    """They train as two do that hold all of it, go on after a kill, and one goes on alone."""
    output = spread_out / kind
    llm = with_lora(tiny_llm(), CONFIG.llm)
    matrices = [p for p in decoder_of(llm).layers.parameters() if p.ndim == 2]
    frozen = sum(p.numel() for p in matrices if not p.requires_grad)
    every = sum(p.numel() for p in llm.parameters())
    share = every - frozen // 2
    held: list[int] = json.loads((output / "held.json").read_text())
    assert held == [every, share, share, share]
    for name in (STATE, MODEL, LORA):
        whole, spread, killed = (
            load_file(output / folder / name) for folder in ("whole", "spread", "killed")
        )
        assert whole.keys() == spread.keys() == killed.keys()
        assert all(torch.equal(killed[tensor], value) for tensor, value in spread.items()), name
        drift = [float((whole[tensor] - value).abs().max()) for tensor, value in spread.items()]
        assert max(drift) < 1e-4, name
    load_lora(llm, load_tensors(output / "spread" / LORA))
    alone = spread_config(output / "spread", kind, "fp32")
    longer = OPTIM.model_copy(update={"steps": STEPS + 1})
    run(alone.model_copy(update={"optim": longer}), resume=True)
    assert [record["step"] for record in log_of(output / "spread")] == [*range(STEPS + 2)]


def process(
    number: int,
    count: int,
    kind: DistributedType = DistributedType.MULTI_CPU,
    device: str = "cpu",
) -> Any:
    return SimpleNamespace(
        process_index=number,
        is_main_process=number == 0,
        num_processes=count,
        distributed_type=kind,
        device=torch.device(device),
    )


def test_processes_that_find_different_things_done_leave_nothing_out() -> None:
    early, late = share_of([0, 1, 2, 3, 4], process(0, 2)), share_of([1, 3, 4], process(1, 2))
    assert {*early, *late} == {0, 1, 2, 3, 4} and not {*early} & {*late}


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 12), (16, 4, 3), (2, 4, 0)]
)
def test_as_many_processes_draw_clips_as_there_are_cores_to_spare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr("vqedge.training.processes.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    wanted = config_for(tmp_path).data.workers
    assert workers_of(wanted) == workers
    assert workers_of(wanted, decode=True) == max(cores // processes - 1, 0)
    assert workers_of(5) == workers_of(5, decode=True) == 5


@pytest.mark.parametrize(
    ("there", "optim", "words"),
    [
        (process(0, 3), {"clips_per_step": 8}, "want a multiple of 3"),
        (process(0, 8), {"clips_per_step": 16, "accumulate": 4}, "want a multiple of 32"),
        (process(0, 2, DistributedType.FSDP), {}, "FSDP: what is trained is small"),
    ],
)
def test_processes_that_cannot_share_a_step_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any, optim: Any, words: str
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: there)
    with pytest.raises(ConfigError, match=words):
        run(config_for(tmp_path, optim=OptimConfig(**optim)))


def test_processes_that_did_not_meet_do_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: process(0, 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    accelerator_for(config_for(tmp_path))  # of a shell: no launcher started this process
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"started 2 processes, .* ACCELERATE_USE_CPU=true"):
        run(config_for(tmp_path))


def test_fsdp_of_one_process_is_told_that_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: process(0, 1))
    accelerator_for(config_for(tmp_path))
    assert not caplog.messages
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    accelerator_for(config_for(tmp_path))
    assert "keeps the whole language model" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FSDP_VERSION": "1"}, "launch with --use_fsdp --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing is not"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config is not"),
    ],
)
def test_what_is_not_done_of_fsdp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: str
) -> None:
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for name, value in (asked | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        run(config_for(tmp_path))


def test_under_fsdp_every_process_loads_the_language_model_and_one_alone_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    there = process(0, 2)

    def accelerator(**_: object) -> Any:
        asked.append(os.environ.get("ACCELERATE_USE_FSDP"))
        return there

    monkeypatch.setattr("vqedge.training.processes.Accelerator", accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # so the launcher says
    assert spreads_llm(accelerator_for(config_for(tmp_path))) and not spreads_llm(process(0, 1))
    assert asked == ["false"], "Accelerate would spread what is trained"
    assert not str_to_bool(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])


def test_processes_wait_for_those_that_encode_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        "vqedge.training.processes.Accelerator", lambda **more: told.update(more) or process(0, 1)
    )
    accelerator_for(config_for(tmp_path))
    (handler,) = told["kwargs_handlers"]
    assert handler.to_kwargs()["timeout"] >= timedelta(hours=12)


@pytest.mark.parametrize(
    ("count", "gpus", "words"),
    [
        (1, 1, "training on NVIDIA X, bf16, blocks compiled"),
        (1, 8, r"on NVIDIA X \(1 of 8 GPUs; accelerate launch --multi_gpu .*\), bf16"),
        (8, 8, "training in 8 processes on NVIDIA X, bf16"),
    ],
)
def test_what_trains_where_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, gpus: int, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = config_for(tmp_path, precision="bf16")
    assert re.search(words, told_of(config, process(0, count, device="cuda"), True))


@pytest.mark.parametrize(("cuda", "gpu"), [(None, True), (None, False), ("13.0", True)])
def test_a_gpu_that_pytorch_does_not_know_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cuda: str | None,
    gpu: bool,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("vqedge.training.processes._NVIDIA", tmp_path / ("" if gpu else "none"))
    told = told_of(config_for(tmp_path), process(0, 1), False)
    assert told.startswith(f"training on the CPU ({torch.get_num_threads()} threads), fp32")
    assert ("--force-reinstall torch" in told) == (gpu and cuda is None)


def test_a_gpu_is_asked_to_repeat_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda *words, **more: asked.append((words, more))
    )
    exact: list[bool] = []
    monkeypatch.setattr("vqedge.training.processes.exact_float32", lambda: exact.append(True))
    there = process(0, 1, device="cuda")
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: there)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    fused = ("flash_sdp", "mem_efficient_sdp", "cudnn_sdp")
    try:
        accelerator_for(config_for(tmp_path))
        on = [name for name in fused if getattr(torch.backends.cuda, f"{name}_enabled")()]
    finally:
        for name in fused:
            getattr(torch.backends.cuda, f"enable_{name}")(True)
    assert on == [] and torch.backends.cuda.math_sdp_enabled()
    assert asked == [((True,), {"warn_only": True})] and exact == [True]
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class Started(Exception):
    """The run has its language model."""


def test_gradients_of_attention_repeat_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No switch of PyTorch's is asked: compiled blocks of a cache have what they were made with."""
    llm = tiny_llm()

    def started(_: object) -> bool:
        raise Started

    monkeypatch.setattr("vqedge.training.run.llm_from_gguf", lambda _path: llm)
    monkeypatch.setattr("vqedge.training.run.spreads_llm", started)
    config = config_for(tmp_path)
    clips = SimpleNamespace(mixture=lambda _seed: None, sources=())
    vit, there = SimpleNamespace(position=None), process(0, 1, device="cuda")
    stand_ins: Any = (RunFolder(config), tiny_tokenizer(), clips, clips, vit, there)
    with pytest.raises(Started):
        Run(config, *stand_ins, compiled=False)
    assert llm.config._attn_implementation == "eager"
