"""A video's codes without a language model, for commands that only look at them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from vqedge.bundle import Bundle
from vqedge.commands.output import say
from vqedge.commands.session import RunsOn
from vqedge.errors import ConfigError
from vqedge_runtime.encoders import open_encoder
from vqedge_runtime.tokens import Codes
from vqedge_runtime.video import Clip, clip_from_path
from vqedge_runtime.vqt import PER_QUESTION


def encoded_clip(
    path: Path,
    span: tuple[float | None, float | None],
    bundle: Bundle,
    budget: int,
    runs_on: RunsOn,
) -> tuple[Clip, Codes]:
    """Decode a span of a video in seconds and encode it; tells the backend on stderr.

    Raises:
        BackendUnavailable: the backend cannot run here or on this bundle.
        ConfigError: its tokens follow a question, and there is none.
        VideoError: the file cannot be decoded, or the span is outside of it.
    """
    if bundle.manifest.quantizer.per_question:
        raise ConfigError(PER_QUESTION)
    spec = bundle.manifest.encoder
    clip = clip_from_path(path, spec.frames, spec.size, *span, rule=spec.rule)
    with closing(open_encoder(runs_on.backend, bundle, runs_on.threads)) as encoder:
        say(f"encoder: {encoder.name}")
        return clip, encoder.encode(clip.frames_thwc, budget)
