"""What the processes of a launcher share, and what they must agree on."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    disable_fsdp_ram_efficient_loading,
    parse_flag_from_env,
    patch_environment,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vqedge.cores import usable_cores
from vqedge.errors import ConfigError
from vqedge.model.vit import exact_float32
from vqedge.packages import pip_command
from vqedge.recipe import TrainConfig

logger = logging.getLogger(__name__)

# they spread what is trained over processes, and a run saves whole tensors of it
_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

_MOST_DRAWING = 12  # no GPU encodes more clips than so many cores draw; decode, it may

_LONGEST_WAIT = timedelta(days=1)  # for those that encode more; NCCL gives up after ten minutes

_NVIDIA = Path("/dev/nvidia0")

_FSDP = "ACCELERATE_USE_FSDP"  # what a launcher says to its processes
_NOT_DONE = {
    "FSDP_OFFLOAD_PARAMS": "--fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "--fsdp_activation_checkpointing",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "--use_parallelism_config",
}


def accelerator_for(config: TrainConfig) -> Accelerator:
    """The processes that a launcher began, or this one alone.

    Raises:
        ConfigError: a step's clips cannot be dealt out evenly, the launcher's processes did not
            meet, or it is to spread more than frozen weights.
    """
    if parse_flag_from_env(_FSDP):
        _heed_fsdp()
    with patch_environment(**{_FSDP: "false"}):  # Accelerate would spread what is trained, too
        accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            gradient_accumulation_steps=config.optim.accumulate,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
        )
    if accelerator.distributed_type in _SHARDING:
        raise ConfigError(
            f"{accelerator.distributed_type.value}: what is trained is small; launch without it, "
            "as: accelerate launch --multi_gpu -m vqedge train"
        )
    if accelerator.num_processes == 1:
        _heed_lone_process()
    if accelerator.device.type == "cuda":
        repeatable_kernels()
        exact_float32()
    parts = config.optim.accumulate * accelerator.num_processes
    if config.optim.clips_per_step % parts:
        raise ConfigError(
            f"optim.clips_per_step {config.optim.clips_per_step}: want a multiple of {parts}, "
            "optim.accumulate times the processes"
        )
    return accelerator


def told_of(config: TrainConfig, accelerator: Accelerator, compiled: bool) -> str:
    """One line: what trains where, and what would be faster."""
    count = accelerator.num_processes
    told = f"training{f' in {count} processes' if count > 1 else ''} on {_place(accelerator)}"
    told += f", {config.precision}{', blocks compiled' if compiled else ''}"
    if accelerator.device.type == "cpu" and torch.version.cuda is None and _NVIDIA.exists():
        told += f"; this PyTorch has no CUDA: {pip_command()} install --force-reinstall torch"
    return told


def _place(accelerator: Accelerator) -> str:
    device = accelerator.device
    if device.type == "cpu":
        return f"the CPU ({torch.get_num_threads()} threads)"
    if device.type != "cuda":
        return str(device.type).upper()
    name: str = torch.cuda.get_device_name(device)
    there = torch.cuda.device_count()
    if accelerator.num_processes > 1 or there == 1:
        return name
    return f"{name} (1 of {there} GPUs; accelerate launch --multi_gpu -m vqedge train uses all)"


def spreads_llm(accelerator: Accelerator) -> bool:
    """Is the frozen language model to be spread over the processes (`--use_fsdp`)?"""
    return accelerator.num_processes > 1 and bool(parse_flag_from_env(_FSDP))


def _heed_lone_process() -> None:
    """Refuse to be one of several that did not meet: each would train, into one folder."""
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"the launcher started {os.environ['WORLD_SIZE']} processes, and they did not meet; "
            "without GPUs set ACCELERATE_USE_CPU=true, or launch one"
        )
    if parse_flag_from_env(_FSDP):
        logger.warning("FSDP: this process is alone, and keeps the whole language model")


def _heed_fsdp() -> None:
    """Refuse what is not done of it, and let every process load the whole language model."""
    if os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            "FSDP: its first version would spread what is trained, too; launch with "
            "--use_fsdp --fsdp_version 2"
        )
    for variable, flag in _NOT_DONE.items():
        if parse_flag_from_env(variable):
            raise ConfigError(f"FSDP: {flag} is not supported; launch without it")
    disable_fsdp_ram_efficient_loading()  # transformers would load nothing in all but one


def repeatable_kernels() -> None:
    """Ask PyTorch for the same sums every time; a kernel that cannot give them warns, once.

    The gradients of fused attention, in any of its three kernels, are sums in no fixed order unless
    such kernels are errors (PyTorch's aten/src/ATen/native/transformers/cuda/attention_backward.cu:
    with `warn_only` it warns). So none of them is used: attention is two matrix products and a
    softmax between them. A language model is given it as `eager`, in `vqedge.training.run`, as
    compiled blocks may come from a cache that knows nothing of the switches here. What compiles
    them picks no sums by timing then, in PyTorch 2.13; an earlier one may. Taken from PyTorch's
    source; it was not run on a GPU.

    cuBLAS reads its variable when it begins. New memory stays unfilled: filling it costs launches.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def leave_out(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Average no gradients of some parameters: they are to get none, and others would wait."""
    ours = {id(parameter) for parameter in parameters}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ours]
    names += getattr(model, "_ddp_params_and_buffers_to_ignore", [])  # from an earlier call
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]


def share_of(numbers: Iterable[int], accelerator: Accelerator) -> list[int]:
    """This process's share, whatever of the numbers others have done meanwhile."""
    world, mine = accelerator.num_processes, accelerator.process_index
    return [number for number in numbers if number % world == mine]


def workers_of(wanted: int | Literal["auto"], decode: bool = False) -> int:
    """Processes that draw or decode clips for this one; `auto`: its share of the other cores."""
    if wanted != "auto":
        return wanted
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # a launcher's processes on this machine
    spare = max(usable_cores() // here - 1, 0)
    return spare if decode else min(spare, _MOST_DRAWING)


def anyone(here: bool, accelerator: Accelerator) -> bool:
    """Does any process say so?"""
    told = torch.tensor([float(here)], device=accelerator.device)
    total: torch.Tensor = accelerator.reduce(told, "sum")
    return bool(total.item() > 0)


def same_everywhere(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process what the first one has to train, and its buffers.

    Each began by itself, and the same kernels need not give the same bits on two devices; from here
    on gradients are averaged, which keeps equal what is equal.
    """
    if accelerator.num_processes == 1:
        return
    trained = (parameter.data for parameter in model.parameters() if parameter.requires_grad)
    for tensor in (*trained, *model.buffers()):
        torch.distributed.broadcast(tensor, 0)


def leave_process_group() -> None:
    """Part from the others, at the end of a command.

    The group's threads may abort a process that ends while something holds the group, as the
    replica of the model does.
    """
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
