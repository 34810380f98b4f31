"""The parity report: every figure is judged, a figure that is no number fails, files come back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vqedge.agreement import chance_of_loss
from vqedge.errors import CheckpointError, ParityError
from vqedge_export.gguf import LLM_QUANTS
from vqedge_export.parity import require
from vqedge_export.report import (
    LEAST_CHANCE_OF_LOSS,
    TOLERANCES,
    AnswerParity,
    CodebookParity,
    EncoderParity,
    LlmParity,
    MeasuredVariant,
    ParityReport,
    Tolerance,
    report_from_file,
)

LIMITS = Tolerance(
    safe_ids_differ=0.0,
    ids_differ=0.001,
    token_cosine=0.999,
    safe_codebook_ids_differ=0.0,
    codebook_ids_differ=0.002,
    variant_safe_nearest_differ=0.01,
    top1_agreement=0.97,
    kl_mean=0.02,
)
ENCODER = {
    "clips": 12,
    "patches": 24576,
    "ids_differ": 0.001,
    "safe_ids_differ": 0.0,
    "margin_where_ids_differ": 1e-5,
    "margin_difference": 1e-6,
    "token_cosine": 0.999,
}
CODEBOOK = {"ids": 1536, "codebook_ids_differ": 0.002, "safe_codebook_ids_differ": 0.0}
VARIANT = {
    "clips": 12,
    "patches": 24576,
    "nearest_differ": 0.02,
    "variant_safe_nearest_differ": 0.01,
    "worst_clip_nearest_differ": 0.1,
    "maps_differ": 0.2,
    "feature_cosine": 0.99,
}
LLM = {"prompts": 24, "positions": 60, "top1_agreement": 0.97, "kl_mean": 0.02, "kl_max": 0.5}


def report(**changes: Any) -> ParityReport:
    """A report at its limits, with some figures changed."""
    encoder, codebook, variant, llm = (
        {name: changes.get(name, value) for name, value in figures.items()}
        for figures in (ENCODER, CODEBOOK, VARIANT, LLM)
    )
    variant["safe_nearest_differ"] = variant.pop("variant_safe_nearest_differ")
    return ParityReport(
        encoder_sha256="0" * 64,
        llm_sha256="1" * 64,
        quantization="Q8_0",
        encoder=EncoderParity(**encoder),
        codebook=CodebookParity(
            ids=codebook["ids"],
            ids_differ=codebook["codebook_ids_differ"],
            safe_ids_differ=codebook["safe_codebook_ids_differ"],
            margin_where_ids_differ=0.0,
        ),
        llm=LlmParity(**llm),
        variants={"int8": MeasuredVariant(sha256="2" * 64, **variant)},
        tolerance=LIMITS,
    )


def test_figures_at_their_limits_pass() -> None:
    assert report().faults(LIMITS) == []
    require(report(), LIMITS)


WORSE = {
    "safe_ids_differ": 1e-6,
    "ids_differ": 0.0011,
    "token_cosine": 0.9989,
    "safe_codebook_ids_differ": 1e-6,
    "codebook_ids_differ": 0.0021,
    "variant_safe_nearest_differ": 0.011,
    "top1_agreement": 0.969,
    "kl_mean": 0.021,
}


@pytest.mark.parametrize("name", WORSE)
@pytest.mark.parametrize("no_number", [False, True])
def test_each_figure_outside_its_limit_is_named(name: str, no_number: bool) -> None:
    value = math.nan if no_number else WORSE[name]
    (fault,) = report(**{name: value}).faults(LIMITS)
    whose = " of int8" if name.startswith("variant") else ""
    assert fault.startswith(f"{name}{whose} {'nan' if no_number else f'{value:.4g}'}, at ")
    assert f"{getattr(LIMITS, name):g}" in fault


def test_every_limit_is_judged_and_all_faults_are_listed() -> None:
    bad = report(**WORSE)
    assert set(WORSE) == set(Tolerance.model_fields)
    assert {fault.split()[0] for fault in bad.faults(LIMITS)} == set(WORSE)
    with pytest.raises(ParityError) as caught:
        require(bad, LIMITS)
    assert all(name in str(caught.value) for name in WORSE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_what_was_not_measured_does_not_pass(part: str) -> None:
    half = report().model_copy(update={part: None})
    assert half.faults(LIMITS) == ["not measured"]


def test_a_codebook_whose_ids_were_never_compared_does_not_pass() -> None:
    assert report(ids=0).faults(LIMITS) == ["not measured"]


def test_a_model_without_learned_codebook_needs_no_figures_of_one() -> None:
    assert report().model_copy(update={"codebook": None}).faults(LIMITS) == []


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    assert report_from_file(path) is None
    path.write_text(report().to_json(), encoding="utf-8")
    assert report_from_file(path) == report()
    assert list(json.loads(path.read_text())) == sorted(ParityReport.model_fields)
    assert report().to_json().endswith("}\n")


def test_a_figure_that_is_no_number_survives_its_file_as_null(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    for value in (math.nan, math.inf):
        path.write_text(report(kl_mean=value).to_json(), encoding="utf-8")
        document = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert document["llm"]["kl_mean"] is None
        found = report_from_file(path)
        assert found is not None and found.llm is not None
        assert math.isnan(found.llm.kl_mean) and found.faults(LIMITS) != []


@pytest.mark.parametrize(("clips", "few"), [(6, True), (7, False)])
def test_clips_are_too_few_where_a_loss_on_all_of_them_would_pass(clips: int, few: bool) -> None:
    lost = chance_of_loss([0] * clips, [1] * clips)
    answers = AnswerParity(
        suite="synthetic",
        version="1",
        questions=clips,
        clips=clips,
        same=0,
        accuracy_reference=1.0,
        accuracy=0.0,
        chance_of_loss=lost,
    )
    assert answers.too_few == few == (lost >= LEAST_CHANCE_OF_LOSS)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"encoder_sha256": 1}', b"[]", b'{"\xff": 1}'])
def test_a_file_that_is_no_report(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "parity.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a parity report"):
        report_from_file(path)


def test_every_type_of_weights_has_a_tolerance_and_finer_ones_a_tighter_one() -> None:
    assert list(TOLERANCES) == list(LLM_QUANTS)
    agreements = [limit.top1_agreement for limit in TOLERANCES.values()]
    divergences = [limit.kl_mean for limit in TOLERANCES.values()]
    assert agreements == sorted(agreements, reverse=True)
    assert divergences == sorted(divergences)
    assert {limit.safe_ids_differ for limit in TOLERANCES.values()} == {0.0}
