"""A parity report in which everything agrees, but for what a test says."""

from __future__ import annotations

from vqedge_export.report import EncoderParity, LlmParity, ParityReport, Tolerance


def parity_report(
    quantization: str,
    *,
    ids_differ: float = 0.0,
    top1: float = 1.0,
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Of no files in particular."""
    return ParityReport(
        encoder_sha256="0" * 64,
        llm_sha256="1" * 64,
        quantization=quantization,
        encoder=EncoderParity(
            clips=3,
            patches=768,
            ids_differ=ids_differ,
            safe_ids_differ=0.0,
            margin_where_ids_differ=0.0,
            margin_difference=0.0,
            token_cosine=1.0,
        ),
        llm=LlmParity(prompts=4, positions=9, top1_agreement=top1, kl_mean=0.0, kl_max=0.0),
        tolerance=tolerance,
    )
