"""What a save of a run holds: weights, moments of their optimiser, what was fitted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqedge.model.vlm import VideoLanguageModel

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_USAGE = "codebook.usage"  # how often entries were picked lately


def trained(model: VideoLanguageModel) -> dict[str, torch.nn.Parameter]:
    """All that a run changes by its gradients."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def taught(model: VideoLanguageModel) -> dict[str, torch.nn.Parameter]:
    """All that a lesson without the language model changes."""
    return {name: p for name, p in trained(model).items() if not name.startswith("llm.")}


def all_of(
    model: VideoLanguageModel,
    named: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Named weights, their moments, and what was fitted; on the CPU."""
    tensors = _state_of(named, optimizer)
    for name, buffer in _fitted(model).items():
        tensors[f"buffer.{name}"] = buffer.cpu()
    if model.bridge.codebook is not None:
        tensors[_USAGE] = model.bridge.codebook.usage.cpu()
    return tensors


def give_all(
    tensors: Mapping[str, Tensor],
    model: VideoLanguageModel,
    named: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """The reverse of `all_of`."""
    _restore_state(tensors, named, optimizer)
    for name, buffer in _fitted(model).items():
        buffer.copy_(tensors[f"buffer.{name}"])
    if model.bridge.codebook is not None:
        model.bridge.codebook.usage.copy_(tensors[_USAGE])


def _fitted(model: VideoLanguageModel) -> dict[str, Tensor]:
    """Buffers of the bridge that a checkpoint holds: what was fitted, not trained."""
    kept = model.bridge.state_dict().keys()
    return {name: buffer for name, buffer in model.bridge.named_buffers() if name in kept}


def _state_of(
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


def _restore_state(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Give weights and optimiser what `_state_of` kept."""
    for name, parameter in named.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        if f"step.{name}" in tensors:  # none yet before the first step
            moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in _ADAM_MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"][0], **moments}
