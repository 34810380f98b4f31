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
    hashes = {file.role: file.sha256 for file in manifest.files}
    return Header(
        kind=manifest.quantizer.kind,
        levels=codebook.levels if codebook else 0,
        width=codebook.entries if codebook else int(values.shape[1]),
        frames=encoder.frames,
        grid_height=encoder.grid,
        grid_width=encoder.grid,
        codes=manifest.quantizer.codes,
        encoder_sha256=hashes["encoder"],
        bridge_sha256=hashes["bridge"],
        codebook_sha256=codebook.sha256 if codebook else NO_SHA256,
        budget=budget,
        window_us=window_us,
        origin=origin or Origin(),
        bits=bits,
    )


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
    named = {"codebook": "codebook_sha256", "bundle": "bridge_sha256"}
    for what, name in named.items():
        theirs, own = getattr(header, name), getattr(ours, name)
        if theirs != own:
            line = f"made with another {what} ({theirs[:8]}, not {own[:8]}); {_AGAIN}"
            raise VqtError(line)
    sizes = ("levels", "width", "map_shape", "codes")
    for name in sizes:
        if getattr(header, name) != getattr(ours, name):
            raise VqtError(
                f"{name} {getattr(header, name)}, the bundle has {getattr(ours, name)}; {_AGAIN}"
            )
