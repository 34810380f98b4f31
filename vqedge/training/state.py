"""Weights with the moments of their optimiser, as the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


def state_of(
    named: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Named weights, and the moments of those that have taken a step, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensors[f"weight.{name}"] = parameter.detach().cpu()
        state = optimizer.state.get(parameter, {})
        for moment in _ADAM_MOMENTS:
            if moment in state:
                tensors[f"{moment}.{name}"] = state[moment].cpu()
        if "step" in state:
            tensors[f"step.{name}"] = torch.as_tensor(state["step"]).reshape(1).cpu()
    return tensors


def restore_state(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Give weights and optimiser what `state_of` kept."""
    for name, parameter in named.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        if f"step.{name}" in tensors:  # none yet before the first step
            moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in _ADAM_MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"][0], **moments}
