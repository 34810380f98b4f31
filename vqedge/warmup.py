"""The first minute of training: the bridge alone learns to name what its codes show."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch

from vqedge.config import OptimConfig
from vqedge.data.cache import CachedClips
from vqedge.data.naming import code_names
from vqedge.data.world import Scene
from vqedge.model.encoder import Bridge
from vqedge.model.naming import NamingLoss

logger = logging.getLogger(__name__)


def teach_names(
    bridge: Bridge,
    clips: CachedClips,
    scenes: Iterable[Scene],
    loss_of: NamingLoss,
    optim: OptimConfig,
    schedule: Callable[[int], float],
    generator: torch.Generator,
    on_step: Callable[[float], None] = lambda _loss: None,
) -> float:
    """Train the bridge for `optim.naming_steps` steps; returns the last loss.

    Args:
        bridge: what learns, on its device.
        clips: quantised clips.
        scenes: what each of them shows, in their order.
        loss_of: the naming loss, on the bridge's device.
        optim: steps, clips per step, learning rate.
        schedule: factor of the learning rate by step.
        generator: picks the clips, on the CPU.
        on_step: told the loss after every step.
    """
    frames, codes = bridge.config.encoder.frames, bridge.config.quantizer.codes
    names = torch.stack(
        [
            torch.from_numpy(code_names(scene, indices.numpy(), frames, codes))
            for scene, indices in zip(scenes, clips.indices, strict=True)
        ]
    )
    device = next(bridge.parameters()).device
    optimizer = torch.optim.AdamW(bridge.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    value = float("nan")
    for step in range(optim.naming_steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.naming_learning_rate * schedule(step)
        chosen = torch.randint(len(clips), (optim.naming_clips_per_step,), generator=generator)
        rows, _mask = bridge(
            clips.codes[chosen].float().to(device), clips.indices[chosen].long().to(device)
        )
        loss = loss_of(rows, names[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bridge.parameters(), optim.max_grad_norm)
        optimizer.step()
        value = loss.item()
        on_step(value)
    logger.info("named codes: loss %.4f after %d steps", value, optim.naming_steps)
    return value
