"""Evidence on the real bundle: the codes that an answer hangs on move with the question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vqedge_runtime import Video, VideoQA
from vqedge_runtime.evidence import find_evidence


@pytest.mark.slow
def test_evidence_of_a_colour_moves_to_the_object_that_is_asked_about(
    qa: VideoQA, demo_clip: Path
) -> None:
    """The circle stays in the upper half of the picture, the square in the lower one."""
    video = qa.encode(demo_clip)
    of_circle = upper_share(qa, video, "What color is the circle?", "red")
    of_square = upper_share(qa, video, "What color is the square?", "blue")
    assert of_circle > 0.5 > of_square and of_circle - of_square > 0.3


def upper_share(qa: VideoQA, video: Video, question: str, answer: str) -> float:
    """Share of the patches of the strongest codes that lie in the upper half."""
    assert qa.ask(video, question).text == answer
    found = find_evidence(qa.llm, video, question, answer)
    assert found.log_likelihood > -1 and len(found.codes) == video.tokens.count
    rows = np.nonzero(np.isin(video.tokens.index_map, found.strongest))[1]
    share = float(np.mean(rows < 8))
    print(f"{question} {share:.2f} of the patches of codes {found.strongest} in the upper half")
    return share
