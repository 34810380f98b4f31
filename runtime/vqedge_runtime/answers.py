"""What goes in and out of a session: encoded videos, answers, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from vqedge.budget import ADAPTIVE
from vqedge.errors import ConfigError
from vqedge_runtime.encoders.protocol import Frames
from vqedge_runtime.llm import ChoiceScores, Generation, TextStream, VideoRows
from vqedge_runtime.tokens import TokenSet
from vqedge_runtime.vqt import PER_QUESTION, Origin

NO_ENCODER = "none (codes from a file)"


@dataclass(frozen=True)
class Timings:
    """Wall times of one ask in milliseconds; 0 for stages that were done before."""

    decode: float = 0.0
    preprocess: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Backend:
    """What ran where, as "onnxruntime CPU fp32" and "llama.cpp CPU Q4_0"."""

    encoder: str
    llm: str

    def __str__(self) -> str:
        """One line for people."""
        return f"encoder: {self.encoder}; llm: {self.llm}"


@dataclass(frozen=True, eq=False)
class Video:
    """An encoded clip: ask it as often as you like. Equal to itself only.

    Attributes:
        tokens: the discrete tokens.
        duration_s: length of the span that was sampled, 0 for an image.
        frames: frames sampled.
        times_s: time of each sampled frame from the start of the file.
        timings: what decoding and encoding took.
        start_s: start of the span.
        budget: most codes it was encoded with, as the encoder takes it.
        source: full path of the video, or what a `.vqt` says of it; None for frames from memory.
        part: it is a span that was asked for, or a segment: the video may be longer.
        stamp: size in bytes of a source that is a path, and time of its last change in nanoseconds,
            when it was encoded.
        frames_thwc: of a bundle whose tokens follow the question, what they are made of, anew for
            each; before there is one, `tokens` holds none.
        encoder: what encoded it, as `Backend` says it; empty where there are no tokens yet.
        note: what the user should know of it, as that it ends earlier than its file says; or
            nothing.
        readers: sha256 of the codebook and of the bridge that its codes are for, as
            `vqt.fit.readers_of` tells them; None where that is not known.
    """

    tokens: TokenSet
    duration_s: float
    frames: int
    times_s: tuple[float, ...]
    timings: Timings
    start_s: float = 0.0
    budget: int = ADAPTIVE
    source: Path | Origin | None = None
    part: bool = False
    stamp: tuple[int, int] | None = None
    frames_thwc: Frames | None = field(default=None, repr=False)
    encoder: str = ""
    note: str = ""
    readers: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def end_s(self) -> float:
        """End of the span, seconds."""
        return self.start_s + self.duration_s

    @property
    def rows(self) -> VideoRows:
        """The rows as the language model takes them.

        Raises:
            ConfigError: they follow the question, and there is none yet.
        """
        if self.frames_thwc is not None and not self.tokens.count:
            raise ConfigError(PER_QUESTION)
        return VideoRows(self.tokens.rows, self.tokens.token_ids)


@dataclass(frozen=True)
class Answer:
    """An answer with what it cost; `str` gives the text, `to_dict` what can be written as JSON.

    Attributes:
        text: the answer; with choices, the likeliest one.
        tokens: rows of the video that the language model read.
        timings: wall times.
        backend: what ran where.
        video: the clip it is about.
        choice_scores: probability of every choice, empty without choices.
        generated_tokens: tokens of the answer.
        tokens_per_s: generation speed after the first token; 0 without a second.
        stopped: the model ended its answer; False where `max_tokens` did.
    """

    text: str
    tokens: int
    timings: Timings
    backend: Backend
    video: Video = field(repr=False)
    choice_scores: dict[str, float] = field(default_factory=dict, hash=False)
    generated_tokens: int = 0
    tokens_per_s: float = 0.0
    stopped: bool = True

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """What `vqedge ask --json` prints of it, in what JSON knows. Scripts rely on its keys."""
        video = self.video
        document = {
            "answer": self.text,
            "tokens": self.tokens,
            "timings_ms": {name: round(ms, 3) for name, ms in asdict(self.timings).items()},
            "backend": asdict(self.backend),
            "video": {"duration_s": round(video.duration_s, 6), "frames": video.frames},
            "tokens_before": video.tokens.patches,
            "generated_tokens": self.generated_tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "stopped": self.stopped,
        }
        if self.choice_scores:
            document["choices"] = dict(self.choice_scores)
        if video.tokens.ids is not None:
            document["ids"] = video.tokens.ids.tolist()
        return document

    def including_encoding(self, prefix_ms: float = 0.0) -> Answer:
        """The same answer with the video's own times added: what a cold ask costs.

        Args:
            prefix_ms: what reading the video ahead of the question took.
        """
        spent, own = self.video.timings, self.timings
        known = own.decode + own.preprocess + own.encode  # and so in the last two already
        prefill, first, total = own.prefill, own.first_token - known, own.total - known
        prefill, first, total = (ms + prefix_ms for ms in (prefill, first, total))
        return replace(self, timings=timings_with_llm(spent, prefill, first, total))


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; `answer` is complete once the iteration has ended.

    Stop early by leaving the loop and calling `close()`, or use it as a context manager. The
    next question or video that the session's language model reads, of any thread, ends it.

    Args:
        stream: the language model's.
        finish: an answer from what was generated.
    """

    def __init__(self, stream: TextStream, finish: Callable[[Generation], Answer]) -> None:
        self._stream, self._finish = stream, finish

    def __next__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            StreamEnded: the language model has read something else meanwhile.
            BackendUnavailable: the session was closed, or the model failed.
        """
        return next(self._stream)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop generating; twice is fine."""
        self._stream.close()

    @property
    def answer(self) -> Answer:
        """What was generated so far, with counts and times."""
        return self._finish(self._stream.result)


def generated_answer(video: Video, result: Generation, spent: Timings, backend: Backend) -> Answer:
    """The answer that was generated about a video; `spent` is what encoding it took just now."""
    prefill_ms = result.prefix_ms + result.question_ms
    return Answer(
        result.text,
        video.tokens.count,
        timings_with_llm(spent, prefill_ms, result.first_token_ms, result.total_ms),
        backend,
        video,
        generated_tokens=result.generated_tokens,
        tokens_per_s=result.tokens_per_s,
        stopped=result.stopped,
    )


def chosen_answer(video: Video, scores: ChoiceScores, spent: Timings, backend: Backend) -> Answer:
    """The likeliest of several answers about a video; see `generated_answer`."""
    prefill_ms = scores.prefix_ms + scores.question_ms
    timings = timings_with_llm(spent, prefill_ms, prefill_ms, scores.total_ms)
    probabilities = dict(zip(scores.choices, scores.probabilities, strict=True))
    return Answer(scores.best, video.tokens.count, timings, backend, video, probabilities)


def timings_with_llm(spent: Timings, prefill: float, first_token: float, total: float) -> Timings:
    """Timings of the whole ask: the encoder's stages come before the language model's."""
    before = spent.decode + spent.preprocess + spent.encode
    return replace(spent, prefill=prefill, first_token=before + first_token, total=before + total)
