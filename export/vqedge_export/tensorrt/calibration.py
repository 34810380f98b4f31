"""What int8 has to know beforehand: how large the inputs of the ViT's layers become.

Measured by the float32 encoder in ONNX Runtime on generated clips and on those of the user; and
measured again, on clips that were not among them, whether the ids are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vqedge.bundle import EncoderRecord
from vqedge.data.generated import generated_frames
from vqedge.errors import ParityError
from vqedge_export.flips import OnnxReader, compared, feeds_for, quiet_session
from vqedge_export.report import MOST_SAFE_IDS, VariantParity
from vqedge_export.tensorrt.qdq import Channels, inputs_of_layers

CALIBRATION_SEED, CALIBRATION_CLIPS = 90_003, 8
CHECK_CLIPS = 3

Frames = npt.NDArray[np.uint8]


def generated_clips(encoder: EncoderRecord, seed: int, count: int) -> list[Frames]:
    """Clips of the generated world, uint8 `[T, size, size, 3]` each."""
    return [generated_frames(seed, index, encoder.frames, encoder.size) for index in range(count)]


def digest_of(clips: Sequence[Frames]) -> str:
    """Tells calibrations apart: sha256 over all pixels."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(repr(clip.shape).encode())
        digest.update(np.ascontiguousarray(clip).tobytes())
    return digest.hexdigest()


def measured_channels(model: onnx.ModelProto, clips: Sequence[Frames]) -> dict[str, Channels]:
    """The inputs of the ViT's linear layers, over all clips.

    Args:
        model: the encoder in float32.
        clips: uint8 `[T, size, size, 3]` each; at least one.

    Raises:
        ExportError: the graph has no such layer.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = list(inputs_of_layers(shown.graph))
    del shown.graph.output[:]
    for name in names:
        shown.graph.output.add(name=name)
    session = quiet_session(shown)
    passes = [_channels_of(session, names, clip) for clip in clips]
    return {name: _together([seen[name] for seen in passes]) for name in names}


def require_ids_kept(
    full: onnx.ModelProto, lowered: onnx.ModelProto, clips: Sequence[Frames], budget: int
) -> VariantParity:
    """Compare ids in ONNX Runtime; the bar is that of the CPU's int8 encoder.

    Args:
        full: the encoder in float32.
        lowered: the same in int8, NearestCodebook with its body.
        clips: that `lowered` was not calibrated on.
        budget: most codes a clip.

    Raises:
        ParityError: too many safe ids turned.
    """
    reference, other = OnnxReader(full), OnnxReader(lowered)
    figures = compared(
        (reference(clip, budget) for clip in clips), (other(clip, budget) for clip in clips)
    )
    if not figures.safe_ids_differ <= MOST_SAFE_IDS:
        raise ParityError(
            f"int8 turns {figures.safe_ids_differ:.2%} of the safe ids, at most "
            f"{MOST_SAFE_IDS:.0%} is allowed; calibrate on clips like those it is for "
            "(vqedge build --calibrate FOLDER), or use --precision fp16"
        )
    return figures


def _channels_of(
    session: ort.InferenceSession, names: Sequence[str], clip: Frames
) -> dict[str, Channels]:
    feeds = feeds_for(session, clip, 1)  # the ViT reads no budget, and no question
    values = session.run(list(names), feeds)
    rows = (value.reshape(-1, value.shape[-1]) for value in values)
    return {
        name: Channels(np.abs(row).max(axis=0), np.square(row, dtype=np.float64).mean(axis=0))
        for name, row in zip(names, rows, strict=True)
    }


def _together(seen: Sequence[Channels]) -> Channels:
    return Channels(
        np.max([item.largest for item in seen], axis=0),
        np.mean([item.power for item in seen], axis=0),
    )
