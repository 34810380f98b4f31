"""Evidence on the real bundle: the codes that an answer hangs on lie where its object is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vqedge_runtime import VideoQA
from vqedge_runtime.evidence import find_evidence


@pytest.mark.parametrize(
    ("shape", "answer", "upper"), [("circle", "red", 1), ("square", "blue", 0)]
)
def test_evidence_of_a_colour_is_where_the_object_is(
    qa: VideoQA, demo_clip: Path, shape: str, answer: str, upper: int
) -> None:
    """The circle stays in the upper half of the picture, the square in the lower one."""
    video, question = qa.encode(demo_clip), f"What color is the {shape}?"
    assert qa.ask(video, question).text == answer
    found = find_evidence(qa.llm, video, question, answer)
    assert found.log_likelihood > -1 and len(found.codes) == video.tokens.count
    rows = np.nonzero(np.isin(video.tokens.index_map, found.strongest))[1]
    share = float(np.mean(rows < 8) if upper else np.mean(rows >= 8))
    print(f"{share:.2f} of the patches of codes {found.strongest} in its half")
    assert share > 0.9
