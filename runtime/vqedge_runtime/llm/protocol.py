"""What a language model does for a session, and the values that go in and out. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from vqedge.errors import BundleError, PromptError, UsageError
from vqedge_runtime.tokens import rows_key

Rows = npt.NDArray[np.float32]

_WHOLE, _NUMBERS = ("max_tokens", "top_k", "seed"), ("temperature", "top_p")


@dataclass(frozen=True)
class VideoRows:
    """A video as the language model reads it.

    Attributes:
        rows: float32 `[K, width]`, K >= 1, one embedding a token; other float types are converted.
        ids: int32 `[K]`, if the rows are of the model's own vocabulary: it reads these instead, as
            any other runtime would.
        key: names the content: equal keys mean equal rows. Their `rows_key`.
    """

    rows: Rows
    ids: npt.NDArray[np.int32] | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Check the rows and name them.

        Raises:
            BundleError: not `[K >= 1, width]`, or a value is NaN or infinite.
        """
        rows = np.ascontiguousarray(self.rows, np.float32)
        if rows.ndim != 2 or not rows.size:
            raise BundleError(f"video rows must be [K >= 1, width], got {rows.shape}; encode again")
        if not np.isfinite(rows).all():
            raise BundleError(
                "the encoder gave NaN or infinity; try another --backend, or export again"
            )
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "key", rows_key(rows))

    @property
    def inputs(self) -> Rows | npt.NDArray[np.int32]:
        """What the model reads: ids where there are some, else rows."""
        return self.rows if self.ids is None else self.ids


@dataclass(frozen=True)
class Prompt:
    """A question about a video."""

    video: VideoRows
    question: str


@dataclass(frozen=True)
class Exchange:
    """A question that was answered before, about the same video."""

    question: str
    answer: str


@dataclass(frozen=True)
class DecodingOptions:
    """How an answer is picked. Temperature 0 is greedy; the rest matters above 0 only.

    Attributes:
        max_tokens: the answer is cut there, >= 1.
        temperature: 0, or 0.001 to 1000: float32 cannot divide logits by any number.
        top_p: sample from the likeliest tokens holding this mass, in (0, 1].
        top_k: sample from this many tokens, 0 for all.
        seed: 0 to 2**32 - 2; the same seed gives the same answer on the same build.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work; make NumPy's numbers plain ones.

        Raises:
            UsageError: a value is no number, or out of its range; the message names both.
        """
        for name in _WHOLE:
            self._convert(name, Integral, int, "a whole number")
        for name in _NUMBERS:
            self._convert(name, Real, float, "a number")
        ranges = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (
                self.temperature == 0 or 1e-3 <= self.temperature <= 1e3,
                "0, or 0.001 to 1000",
            ),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 or more"),
            # llama.cpp reads 2**32 - 1 as "random"
            "seed": (0 <= self.seed < 2**32 - 1, "0 to 4294967294"),
        }
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise UsageError(f"{name} {getattr(self, name)}: give {wanted}")

    def _convert(self, name: str, taken: type, plain: type, wanted: str) -> None:
        value = getattr(self, name)
        fits = isinstance(value, taken) and not isinstance(value, bool)
        if not fits:
            raise UsageError(f"{name} {value!r}: give {wanted}")
        try:
            number = plain(value)
        except OverflowError:  # a whole number that no float holds
            number = inf if value > 0 else -inf
        object.__setattr__(self, name, number)


@dataclass(frozen=True)
class Prefix:
    """The template's start and the video's rows, held by the model.

    Attributes:
        tokens: positions taken.
        ms: time to read it, about 0 if it was held already.
        reused: it was held already, as the last one or set aside.
    """

    tokens: int
    ms: float
    reused: bool


@dataclass(frozen=True)
class Generation:
    """An answer, or as much of it as there is.

    Attributes:
        text: the answer as generated.
        prompt_tokens: positions before the answer, the video's included.
        generated_tokens: tokens of the answer, without the end-of-turn token.
        prefix_ms: time for template and video, about 0 if reused.
        question_ms: time for the question's tokens.
        first_token_ms: from the call to the first token, prefix and question included.
        total_ms: from the call to the last token.
        reused_prefix: the model held this video already.
        stopped: the model ended its turn itself; False where `max_tokens` cut it.
    """

    text: str
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_ms: float = 0.0
    question_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    reused_prefix: bool = False
    stopped: bool = True

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token, the end of the turn counted as one; 0 without a second."""
        later = self.generated_tokens + self.stopped - 1
        later_ms = self.total_ms - self.first_token_ms
        return later / later_ms * 1e3 if later > 0 and later_ms > 0 else 0.0


def check_choices(choices: Sequence[str]) -> None:
    """Refuse answers of which the likeliest cannot be told.

    Raises:
        PromptError: none, one that is empty or there twice, or a text instead of several.
    """
    if isinstance(choices, str):
        raise PromptError(f"choices {choices!r}: give a list, as ['red', 'blue']")
    texts = [choice.strip() for choice in choices]
    if not texts or not all(texts):
        raise PromptError("every choice needs a word, as ['red', 'blue']")
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise PromptError(f"choices: {twice[0]!r} is there twice; give each once")


def check_answer(answer: str) -> None:
    """Refuse an answer that nothing can be told of.

    Raises:
        PromptError: it is empty.
    """
    if not answer.strip():
        raise PromptError("every answer needs a word, as 'red'")


@dataclass(frozen=True)
class ChoiceScores:
    """Log-likelihoods of given answers, each with its end of turn, after the same prompt.

    Attributes:
        choices: the answers, in the order given.
        totals: summed log-likelihood of each, natural logarithm.
        prefix_ms: see `Generation`.
        question_ms: see `Generation`.
        total_ms: from the call to the last score.
    """

    choices: tuple[str, ...]
    totals: tuple[float, ...]
    prefix_ms: float = 0.0
    question_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Softmax of `totals`: how likely each is if one of them is the answer. Sums to 1."""
        weights = np.exp(np.asarray(self.totals) - max(self.totals))
        return tuple((weights / weights.sum()).tolist())

    @property
    def best(self) -> str:
        """The likeliest choice, the first of equals."""
        return self.choices[self.totals.index(max(self.totals))]


@dataclass(eq=False)
class TextStream(Iterator[str]):
    """An answer as it is generated: iterate for pieces of text, read `result` at any time.

    Stop early by leaving the loop and calling `close()`, or use it as a context manager.
    """

    _pieces: Generator[str, None, None]
    _result: Callable[[], Generation]
    _closed: bool = field(default=False, init=False)

    def __next__(self) -> str:
        """The next piece, never empty.

        Raises:
            StreamEnded: the model was used for something else meanwhile.
            BackendUnavailable: it was closed, or failed.
        """
        if self._closed:
            raise StopIteration
        try:
            return next(self._pieces)
        finally:
            if self._closed:  # by another thread, which could not end them
                self.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def result(self) -> Generation:
        """The text so far with its counts and times; complete once the iteration has ended."""
        return self._result()

    def read(self) -> Generation:
        """Run to the end and return the whole answer."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop generating, after the piece that another thread waits for.

        The model stays usable; closing twice is fine.
        """
        self._closed = True
        with suppress(ValueError):  # another thread is in them, and ends them as it leaves
            self._pieces.close()


class LanguageModel(Protocol):
    """Answers questions about videos given as rows."""

    @property
    def name(self) -> str:
        """What runs where, as "llama.cpp CPU Q4_0"."""

    @property
    def width(self) -> int:
        """Width of the rows the model reads."""

    def question_embedding(self, question: str) -> Rows:
        """The mean of the input embeddings of a question's words, float32 `[width]`."""

    def prefill_video(self, video: VideoRows) -> Prefix:
        """Read the video ahead of its first question."""

    def prefix_state(self, video: VideoRows) -> bytes:
        """What the model holds after reading the video."""

    def restore_prefix(self, video: VideoRows, state: bytes) -> bool:
        """Take that back instead of reading; whether it fits."""

    @property
    def state_identity(self) -> str:
        """All that such a state depends on beside the model's file and the rows."""

    def forget(self) -> None:
        """Drop all that was read of any video."""

    def stream(
        self,
        video: VideoRows,
        question: str,
        options: DecodingOptions = ...,
        history: Sequence[Exchange] = ...,
    ) -> TextStream:
        """Answer piece by piece; a newer call on the same model ends the stream."""

    def ask(self, video: VideoRows, question: str, options: DecodingOptions = ...) -> Generation:
        """Answer in one go."""

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        """How likely each given answer is."""

    def ask_many(
        self, prompts: Sequence[Prompt], options: DecodingOptions = ...
    ) -> list[Generation]:
        """Answer several prompts together."""

    def score_many(self, prompts: Sequence[Prompt], answer: str) -> list[float]:
        """How likely the answer is after each prompt."""

    def close(self) -> None:
        """Free everything; twice is fine."""
