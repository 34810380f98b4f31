"""What the processes of a launcher share, and what they must agree on."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vqedge.errors import ConfigError
from vqedge.recipe import TrainConfig

# they spread parameters over processes, and a run saves whole ones
_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def accelerator_for(config: TrainConfig) -> Accelerator:
    """The processes that a launcher began, or this one alone.

    Raises:
        ConfigError: a step's clips cannot be dealt out evenly, or the launcher shards the model.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_steps=config.optim.accumulate,
    )
    if accelerator.distributed_type in _SHARDING:
        raise ConfigError(
            f"{accelerator.distributed_type.value}: what is trained is small; launch without it, "
            "as: accelerate launch --multi_gpu -m vqedge.cli train"
        )
    if accelerator.device.type == "cuda":
        repeatable_kernels()
    parts = config.optim.accumulate * accelerator.num_processes
    if config.optim.clips_per_step % parts:
        raise ConfigError(
            f"optim.clips_per_step {config.optim.clips_per_step}: want a multiple of {parts}, "
            "optim.accumulate times the processes"
        )
    return accelerator


def repeatable_kernels() -> None:
    """Ask PyTorch for the same sums every time; a kernel that cannot give them warns, once.

    cuBLAS reads its variable when it begins.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def leave_out(model: nn.Module, part: nn.Module) -> None:
    """Average no gradients of a part of the model: it is to get none, and others would wait."""
    ours = {id(parameter) for parameter in part.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ours]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]


def share_of(numbers: Iterable[int], accelerator: Accelerator) -> list[int]:
    """This process's share, whatever of the numbers others have done meanwhile."""
    world, mine = accelerator.num_processes, accelerator.process_index
    return [number for number in numbers if number % world == mine]


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
