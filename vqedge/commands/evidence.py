"""What `vqedge ask --evidence` and `vqedge viz --question` say of an answer's evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vqedge.progress import progress
from vqedge_runtime import Answer, VideoQA
from vqedge_runtime.evidence import Evidence, find_evidence

NO_WORDS = "the model gave no words; ask in other words"


def evidence_for(qa: VideoQA, answer: Answer, question: str) -> Evidence | None:
    """Leave codes out, with a bar on stderr; None where the model gave no words."""
    if not answer.text.strip():
        return None
    with progress("evidence", answer.video.tokens.codes.count) as step:
        return find_evidence(
            qa.llm, answer.video, question, answer.text, lambda code: step(f"code {code}")
        )


def evidence_document(evidence: Evidence) -> dict[str, Any]:
    """The JSON keys of an answer's evidence. Scripts rely on them."""
    return {
        "evidence": [asdict(item) for item in evidence.codes],
        "evidence_span_s": [evidence.start_s, evidence.end_s],
        "log_likelihood": evidence.log_likelihood,
    }


def evidence_line(evidence: Evidence) -> str:
    """One line for people."""
    if not evidence.strongest:
        return "evidence: no code that the answer is less likely without"
    drops = {item.code: item.drop_nats for item in evidence.codes}
    codes = ", ".join(f"{code} ({drops[code]:+.2g} nats)" for code in evidence.strongest)
    return f"evidence: {evidence.start_s:.2f} to {evidence.end_s:.2f} s, codes {codes}"
