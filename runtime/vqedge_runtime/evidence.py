"""Evidence: which codes an answer hangs on, found by leaving codes out.

Things have many codes, and a sure model misses none of them alone. So a clip is read in quarters,
all its codes dealt out anew in every round, and a code's evidence is how much likelier the answer
is, in nats, where the code is read than where others are in its place: leaving one out, averaged
over what else may be missing (the Banzhaf value of game theory, of equal sizes). A clip of few
codes is read whole, without each. The rows stay as they are; they were made together, so a row that
is left out has still been seen by its neighbours.

The cost is up to 49 prompts: one of all rows and the question, and 48 of a quarter of the rows, in
groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqedge.errors import ConfigError
from vqedge_runtime.answers import Video
from vqedge_runtime.llm import LanguageModel, Prompt, VideoRows
from vqedge_runtime.llm.cells import BRANCHES
from vqedge_runtime.llm.protocol import check_answer
from vqedge_runtime.tokens import Codes

_MANY = 16  # codes; a clip of fewer is read without each
_PARTS, _ROUNDS = 4, 12
_HALF = 0.5  # the strongest codes hold this much of all evidence, the span this much of its peak


@dataclass(frozen=True)
class CodeEvidence:
    """What one code does for an answer.

    Attributes:
        code: its number.
        drop_nats: what the answer's log-likelihood loses with others in its place, or, of a clip of
            fewer than 16 codes, without it.
        start_s: from when on it is to be seen.
        end_s: until when.
        share: of all evidence for the answer; 0 for a code that speaks against it.
    """

    code: int
    drop_nats: float
    start_s: float
    end_s: float
    share: float


@dataclass(frozen=True)
class Evidence:
    """What an answer hangs on.

    Attributes:
        answer: the words.
        log_likelihood: of them with all codes, with the end of the turn.
        codes: each code's evidence, the most first; none where the clip has one code only.
        start_s: from when on the evidence is to be seen: where, frame by frame, there is at least
            half as much as in the frame that has most.
        end_s: until when.
    """

    answer: str
    log_likelihood: float
    codes: tuple[CodeEvidence, ...]
    start_s: float
    end_s: float

    @property
    def strongest(self) -> tuple[int, ...]:
        """The fewest codes that hold half of all evidence, the most first."""
        found, held = [], 0.0
        for item in self.codes:
            if held >= _HALF or not item.share:
                break
            found.append(item.code)
            held += item.share
        return tuple(found)


def find_evidence(
    llm: LanguageModel,
    video: Video,
    question: str,
    answer: str,
    on_code: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """Leave out codes, and see what the answer loses.

    Args:
        llm: the language model that gave the answer.
        video: what it was asked about.
        question: the user's words.
        answer: the words to explain, the model's or others.
        on_code: told the codes one after another as the work goes on.

    Raises:
        ConfigError: no row of the bundle's is one code's, or there are none before a question.
        PromptError: question or answer are empty, or too long.
    """
    rows, each = video.rows, video.tokens.rows_per_code
    if each is None:
        raise ConfigError(
            "no token row of this bundle stands for a single code, so there is no evidence to "
            "compute; ask without --evidence"
        )
    check_answer(answer)
    whole = llm.score_choices(rows, question, [answer]).totals[0]
    count = video.tokens.codes.count

    def likelihoods(read: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The answer's log-likelihood `[n]` with only the codes of each row of `read [n, k]`."""
        found = np.zeros(len(read))
        for first in range(0, len(read), BRANCHES):
            some = range(first, min(first + BRANCHES, len(read)))
            prompts = [Prompt(_only(rows, np.repeat(read[i], each)), question) for i in some]
            found[some] = llm.score_many(prompts, answer)
            for code in range(count * some.start // len(read), count * some.stop // len(read)):
                on_code(code)
        return found

    if count == 1:
        drops = np.zeros(1)
    elif count < _MANY:
        drops = whole - likelihoods(~np.eye(count, dtype=bool))
    else:
        read = _quarters(count)
        found = likelihoods(read)
        drops = found @ read / read.sum(0) - found @ ~read / (~read).sum(0)
    return evidence_from_drops(video, answer, whole, drops)


def _quarters(count: int) -> npt.NDArray[np.bool_]:
    """Which codes each prompt reads, `[prompts, k]`; the same for every clip of as many codes."""
    rng = np.random.default_rng(count)
    read = np.zeros((_ROUNDS, _PARTS, count), bool)
    for parts in read:
        for part, codes in zip(parts, np.array_split(rng.permutation(count), _PARTS), strict=True):
            part[codes] = True
    return read.reshape(-1, count)


def _only(whole: VideoRows, kept: npt.NDArray[np.bool_]) -> VideoRows:
    """Some rows of a video."""
    return VideoRows(whole.rows[kept], ids=None if whole.ids is None else whole.ids[kept])


def evidence_from_drops(
    video: Video, answer: str, log_likelihood: float, drops: npt.NDArray[np.float64]
) -> Evidence:
    """Put what was measured in order and in time.

    Args:
        video: what was asked about.
        answer: the words.
        log_likelihood: of them with all codes.
        drops: evidence of each code, `[k]`.
    """
    mass = mass_of(video.tokens.codes)
    edges = frame_edges_s(video.start_s, video.end_s, len(mass))
    gain = np.maximum(drops, 0)
    share = gain / (gain.sum() or 1.0)
    found = []
    for code in np.argsort(-drops, kind="stable").tolist():
        seen = np.flatnonzero(mass[:, code])
        start_s, end_s = edges[seen[0]], edges[seen[-1] + 1]
        found.append(CodeEvidence(code, float(drops[code]), start_s, end_s, float(share[code])))
    first, last = _span(mass @ (share / mass.sum(0)))
    listed = tuple(found) if len(drops) > 1 else ()
    return Evidence(answer, log_likelihood, listed, edges[first], edges[last + 1])


def mass_of(codes: Codes) -> npt.NDArray[np.float64]:
    """Share of each frame that each code has, `[T, k]`; rows sum to 1."""
    flat = codes.index_map.reshape(len(codes.index_map), -1)
    counts = [np.bincount(frame, minlength=codes.count) for frame in flat]
    return np.stack(counts) / flat.shape[1]


def frame_edges_s(start_s: float, end_s: float, frames: int) -> tuple[float, ...]:
    """Where each frame's part of a span begins, and where the last one ends: `frames + 1` times."""
    return tuple(np.linspace(start_s, end_s, frames + 1).tolist())


def _span(evidence: npt.NDArray[np.float64]) -> tuple[int, int]:
    """First and last frame of the run around the peak; all frames where there is no evidence."""
    enough = evidence >= _HALF * evidence.max() if evidence.max() > 0 else np.ones(len(evidence))
    first = last = int(evidence.argmax())
    while first > 0 and enough[first - 1]:
        first -= 1
    while last + 1 < len(evidence) and enough[last + 1]:
        last += 1
    return first, last
