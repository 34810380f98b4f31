"""The parity report: `parity.json` in the bundle. Tolerances are data, and part of the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from vqedge.bundle import Bundle
from vqedge.checkpoint import PARITY
from vqedge.engines import encoder_sha256
from vqedge.errors import CheckpointError
from vqedge.files import file_sha256
from vqedge.json_text import json_text
from vqedge.validation import first_fault

# share of patches that a lighter encoder may give another id at margins above the 5th percentile
MOST_SAFE_NEAREST = 0.01
# share of patches that another backend may put on another part of the index map, codes matched: on
# the clips of `check --backend` the tiny encoder moves 0.10 in bfloat16 and 0.25 in int8
MOST_MAPS_DIFFER = 0.4
# mean cosine of another backend's tokens, patch by patch: 0.996 in int8, 0.98 on real videos; what
# reads questions, windows or a grid has the same index map whatever a backend computes
LEAST_TOKEN_COSINE = 0.95
# an equal backend gets as many answers fewer right than the reference with at least this chance
LEAST_CHANCE_OF_LOSS = 0.01


def _number(value: Any) -> Any:
    return math.nan if value is None else value


Figure = Annotated[float, BeforeValidator(_number)]  # null in a file where it is no number


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(_Record):
    """What an export may lose."""

    safe_ids_differ: float = (
        0.0  # share of patches with another id although the margin was over 1e-3
    )
    ids_differ: float = 0.001  # share of patches with another id at all
    token_cosine: float = 0.999  # of the worst row in the clips whose patches all agree
    safe_codebook_ids_differ: float = 0.0  # the same of a learned codebook's ids
    codebook_ids_differ: float = 0.001
    variant_safe_nearest_differ: float = MOST_SAFE_NEAREST
    top1_agreement: float
    kl_mean: float  # nats


TOLERANCES: dict[str, Tolerance] = {
    "F16": Tolerance(top1_agreement=0.99, kl_mean=0.005),
    "Q8_0": Tolerance(top1_agreement=0.97, kl_mean=0.02),
    "Q4_K_M": Tolerance(top1_agreement=0.93, kl_mean=0.15),
    "Q4_0": Tolerance(top1_agreement=0.92, kl_mean=0.20),
}


class EncoderParity(_Record):
    """PyTorch against ONNX Runtime on generated clips, at several budgets."""

    clips: int
    patches: int
    ids_differ: Figure
    safe_ids_differ: Figure
    margin_where_ids_differ: Figure
    margin_difference: Figure
    token_cosine: Figure


class VariantParity(_Record):
    """A lighter encoder against the one in float32, in ONNX Runtime. See `vqedge_export.flips`."""

    clips: int
    patches: int
    nearest_differ: Figure  # share of patches whose nearest code, of the same codes, is another
    safe_nearest_differ: Figure  # the same of those above the clip's 5th percentile of margins
    worst_clip_nearest_differ: Figure
    maps_differ: Figure  # share of patches on another part of the index map, codes matched
    feature_cosine: Figure  # mean over patches


class MeasuredVariant(VariantParity):
    """What was measured, and the file it is about."""

    sha256: str


class CodebookParity(_Record):
    """The ids of a learned codebook, in the clips whose patches all have the same code."""

    ids: int
    ids_differ: Figure
    safe_ids_differ: Figure
    margin_where_ids_differ: Figure


class LlmParity(_Record):
    """transformers (float32) against llama.cpp (quantised) at the tokens of real answers."""

    prompts: int
    positions: int
    top1_agreement: Figure
    kl_mean: Figure
    kl_max: Figure


class AnswerParity(_Record):
    """One encoder backend against ONNX Runtime in answers: same language model, same questions."""

    suite: str
    version: str  # of what the suite asks
    questions: int
    clips: int
    same: int  # answers, word for word
    accuracy_reference: Figure
    accuracy: Figure
    chance_of_loss: Figure  # see `vqedge.agreement.chance_of_loss`

    @property
    def too_few(self) -> bool:
        """Not even a loss on every clip would tell."""
        return 0.5**self.clips > LEAST_CHANCE_OF_LOSS


class BackendParity(_Record):
    """One encoder backend against ONNX Runtime, see `vqedge_runtime.compare.BackendFigures`."""

    backend: str
    engine: str | None = None  # key of the engine that ran, if it was one
    reference: str
    clips: int
    clips_of: Literal["generated", "videos"] = "generated"
    clips_same: int
    ids_differ: Figure
    safe_ids_differ: Figure
    margin_where_ids_differ: Figure
    maps_differ: Figure
    token_cosine: float | None
    token_cosine_mean: Figure
    token_cosine_patches: float | None
    answers: AnswerParity | None = None


class ParityReport(_Record):
    """All figures, and the files they are about."""

    encoder_sha256: str
    llm_sha256: str
    quantization: str
    encoder: EncoderParity | None = None
    codebook: CodebookParity | None = None
    llm: LlmParity | None = None
    variants: dict[str, MeasuredVariant] = {}  # by precision
    tolerance: Tolerance | None = None
    backends: dict[str, BackendParity] = {}  # by the backend's name, on the machine of `check`
    flips: dict[str, VariantParity] = {}  # the same, on the clips of `check --videos`
    measured: Literal["at export", "on this machine", "not measured"] = "at export"

    def faults(self, tolerance: Tolerance) -> list[str]:
        """Every figure that is outside its tolerance, in words."""
        if self.encoder is None or self.llm is None or (self.codebook and not self.codebook.ids):
            return ["not measured"]
        at_most = {
            "safe_ids_differ": self.encoder.safe_ids_differ,
            "ids_differ": self.encoder.ids_differ,
            "kl_mean": self.llm.kl_mean,
        }
        if self.codebook:
            at_most["safe_codebook_ids_differ"] = self.codebook.safe_ids_differ
            at_most["codebook_ids_differ"] = self.codebook.ids_differ
        for name, variant in self.variants.items():
            at_most[f"variant_safe_nearest_differ of {name}"] = variant.safe_nearest_differ
        at_least = {
            "token_cosine": self.encoder.token_cosine,
            "top1_agreement": self.llm.top1_agreement,
        }
        limits = tolerance.model_dump()
        return [
            f"{name} {value:.4g}, at most {limits[name.split()[0]]:g} allowed"
            for name, value in at_most.items()
            if not value <= limits[name.split()[0]]
        ] + [
            f"{name} {value:.4g}, at least {limits[name]:g} wanted"
            for name, value in at_least.items()
            if not value >= limits[name]
        ]

    def to_json(self) -> str:
        """Pretty, sorted, with a newline at the end; null where a figure is no number."""
        return json_text(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def report_of(bundle: Bundle) -> ParityReport:
    """A bundle's report; if it has none, one in which nothing is measured."""
    return report_from_file(bundle.root / PARITY) or ParityReport(
        encoder_sha256=encoder_sha256(bundle),
        llm_sha256=file_sha256(bundle.path_of("llm")),
        quantization=bundle.manifest.llm.quantization,
        measured="not measured",
    )


def report_from_file(path: Path) -> ParityReport | None:
    """A report that was written before, or None if there is none.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        return ParityReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: not a parity report of this version ({first_fault(error)}); export or "
            "assemble again"
        ) from error
