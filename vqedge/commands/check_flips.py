"""`vqedge check --videos`: what lighter encoders change on real clips, on this machine."""

from __future__ import annotations

from pathlib import Path

from vqedge.bundle import Bundle
from vqedge.commands.frames import Frames, frames_in_folder
from vqedge.commands.output import say
from vqedge.errors import ConfigError
from vqedge.packages import install_line
from vqedge_export.flips import OnnxReader, Reader, Reading, encoders_compared
from vqedge_export.report import VariantParity
from vqedge_runtime.encoders import ENCODERS, encoder_path
from vqedge_runtime.encoders.protocol import made_question


def flips_of(bundle: Bundle, folder: Path, limit: int | None = None) -> dict[str, VariantParity]:
    """Compare every lighter encoder that can run here with the one in float32, by backend.

    Args:
        bundle: holds the encoders.
        folder: of videos; files that do not decode are left out.
        limit: most clips.

    Raises:
        ConfigError: the folder has no video, or there is nothing to compare.
    """
    budget = bundle.manifest.quantizer.default_budget
    readers = _readers(bundle)
    if not readers:
        raise ConfigError(
            f"{bundle.root}: no lighter encoder to compare; assemble it with --precision int8, "
            f"or {install_line('openvino')}"
        )
    say(f"comparing {', '.join(readers)} with onnxruntime on the clips of {folder}")
    reference = OnnxReader(bundle.path_of("encoder"), made_question(bundle.manifest))
    clips = frames_in_folder(folder, bundle.manifest.encoder, limit)
    return encoders_compared(reference, readers, clips, budget)


def _readers(bundle: Bundle) -> dict[str, Reader]:
    readers: dict[str, Reader] = {}
    if any(item.precision == "int8" for item in bundle.manifest.encoder.variants):
        path = encoder_path(bundle, "int8")
        readers["onnxruntime-int8"] = OnnxReader(path, made_question(bundle.manifest))
    if ENCODERS["openvino"].missing() is None:
        readers["openvino"] = _openvino_reader(bundle)
    return readers


def _openvino_reader(bundle: Bundle) -> Reader:
    from vqedge_runtime.encoders.openvino import OpenVinoEncoder

    def read(frames: Frames, budget: int) -> Reading:
        ids = encoder.encode(frames, budget, text).index_map.reshape(-1)
        return Reading(encoder.features(frames).copy(), ids)

    encoder, text = OpenVinoEncoder(bundle.path_of("encoder")), made_question(bundle.manifest)
    return read
