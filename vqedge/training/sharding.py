"""The frozen weights of a language model, spread over the processes of a launcher.

What is trained stays whole in every process and is averaged as ever: it is small, and so whatever
saves, resumes and compares it knows nothing of this.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vqedge.model.llm import decoder_of
from vqedge.training.processes import leave_out


def spread(llm: Any, accelerator: Accelerator) -> None:
    """Leave each process a share of the matrices of every block, on the accelerator's device.

    A block's matrices are gathered when it runs, forward and backward, and dropped after it.
    Embeddings, norms and biases stay whole.

    Args:
        llm: a causal model with an adapter, the rest of it frozen.
        accelerator: the processes; all call this.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    # what autocast would keep of a matrix until its gradient is its copy, whole
    policy = MixedPrecisionPolicy(param_dtype=half, cast_forward_inputs=False)
    decoder = decoder_of(llm)
    whole = {p for p in decoder.parameters() if p.requires_grad or p.ndim < 2}
    for block in decoder.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(decoder, mesh=mesh, ignored_params={*decoder.parameters()})  # runs before any block


def prepared(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """A model that averages gradients over processes, and an optimiser that waits for them."""
    shares = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    if not shares:
        model, stepper = accelerator.prepare(model, optimizer)
        return model, stepper
    leave_out(model, shares)
    alone = accelerator.prepare_model(model, evaluation_mode=True)  # else it refuses shares
    return DistributedDataParallel(alone), accelerator.prepare_optimizer(optimizer)
