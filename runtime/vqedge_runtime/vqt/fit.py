"""Does a file belong to a bundle? Codes mean something to the bridge they were made for only."""

from __future__ import annotations

from vqedge.bundle import Manifest
from vqedge.errors import ConfigError, VqtError
from vqedge_runtime.vqt.gaussian import MAX_BITS, MIN_BITS
from vqedge_runtime.vqt.header import NO_SHA256, Header, Origin

PER_QUESTION = (
    "this bundle makes a clip's tokens anew for every question, so that none can be kept, read "
    "ahead or searched for; ask about the video itself (ask, chat, or viz with --question)"
)
_AGAIN = "encode the video again with this bundle, or give the bundle it was made with"


def header_for(
    manifest: Manifest,
    budget: int,
    origin: Origin | None = None,
    window_us: int = 0,
    bits: int = 0,
) -> Header:
    """The header of a file made with a bundle.

    Args:
        manifest: of the bundle.
        budget: as the encoder takes it.
        origin: the video.
        window_us: length of a segment, 0 for the whole video, `PART_US` for a part of it.
        bits: of each number of a code, 0 for float16.

    Raises:
        ConfigError: bits where codes are ids, or not 2 to 8; or tokens follow the question.
    """
    if manifest.quantizer.per_question:
        raise ConfigError(PER_QUESTION)
    if bits and manifest.quantizer.codebook:
        raise ConfigError("bits: this bundle's codes are ids of a codebook already; leave it out")
    if bits and not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits {bits}: want {MIN_BITS} to {MAX_BITS}")
    codebook, encoder = manifest.quantizer.codebook, manifest.encoder
    values = next(item for item in manifest.bridge.inputs if item.name != "index_map")
    encoder_sha256 = next(file.sha256 for file in manifest.files if file.role == "encoder")
    codebook_sha256, bridge_sha256 = readers_of(manifest)
    return Header(
        kind=manifest.quantizer.kind,
        levels=codebook.levels if codebook else 0,
        width=codebook.entries if codebook else int(values.shape[1]),
        frames=encoder.frames,
        grid_height=encoder.grid,
        grid_width=encoder.grid,
        codes=manifest.quantizer.codes,
        encoder_sha256=encoder_sha256,
        bridge_sha256=bridge_sha256,
        codebook_sha256=codebook_sha256,
        budget=budget,
        window_us=window_us,
        origin=origin or Origin(),
        bits=bits,
    )


def readers_of(manifest: Manifest) -> tuple[str, str]:
    """The sha256 of the codebook, zeros without one, and of the bridge that codes are for."""
    codebook = manifest.quantizer.codebook
    bridge = next(file.sha256 for file in manifest.files if file.role == "bridge")
    return codebook.sha256 if codebook else NO_SHA256, bridge


def fault_of_readers(theirs: tuple[str, str], manifest: Manifest) -> str | None:
    """That codes are for others than this bundle's, and the next step; None if they are not."""
    for what, other, own in zip(("codebook", "bundle"), theirs, readers_of(manifest), strict=True):
        if other != own:
            return f"made with another {what} ({other[:8]}, not {own[:8]}); {_AGAIN}"
    return None


def check_fit(header: Header, manifest: Manifest) -> None:
    """Refuse a file that this bundle would misread.

    Raises:
        VqtError: another quantizer, codebook, bridge, or sizes; or tokens follow the question.
    """
    if manifest.quantizer.per_question:
        raise VqtError(PER_QUESTION)
    ours = header_for(manifest, header.budget)
    if header.kind != ours.kind:
        raise VqtError(f"holds codes of kind {header.kind}, the bundle reads {ours.kind}; {_AGAIN}")
    if fault := fault_of_readers((header.codebook_sha256, header.bridge_sha256), manifest):
        raise VqtError(fault)
    sizes = ("levels", "width", "map_shape", "codes")
    for name in sizes:
        if getattr(header, name) != getattr(ours, name):
            raise VqtError(
                f"{name} {getattr(header, name)}, the bundle has {getattr(ours, name)}; {_AGAIN}"
            )
