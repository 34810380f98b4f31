"""A language model for tests: says what it was told to say."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Sequence

import numpy as np
from typing_extensions import Self

from vqedge.errors import BackendUnavailable, BundleError, StreamEnded
from vqedge.prompt import question_text
from vqedge_runtime.llm.protocol import (
    ChoiceScores,
    DecodingOptions,
    Exchange,
    Generation,
    Prefix,
    Prompt,
    Rows,
    TextStream,
    VideoRows,
    check_choices,
)


class FakeLanguageModel:
    """Answers with queued texts, one word a token; refuses what the real one refuses.

    `calls` lists what was asked: (key of the video, question); `histories` the turns before.
    """

    def __init__(self, width: int = 576, name: str = "fake") -> None:
        """Make one.

        Args:
            width: of the rows it takes.
            name: what it says it is.
        """
        self.width = width
        self.name = name
        self.calls: list[tuple[str, str]] = []
        self.histories: list[tuple[Exchange, ...]] = []
        self.closed = False
        self._texts: deque[str] = deque()
        self._scores: deque[tuple[float, ...]] = deque()
        self._held: set[str] = set()
        self._turn = 0  # of the last call; an older one's stream has ended

    def enqueue(self, text: str) -> None:
        """Say this at the next question."""
        self._texts.append(text)

    def enqueue_scores(self, *totals: float) -> None:
        """Give these log-likelihoods at the next choice; without any, the first choice is best."""
        self._scores.append(totals)

    def question_embedding(self, question: str) -> Rows:
        """All the same number: the mean of the letters' codes over 256."""
        letters = question_text(question).encode()
        rows: Rows = np.full(self.width, sum(letters) / len(letters) / 256, np.float32)
        return rows

    def prefill_video(self, video: VideoRows) -> Prefix:
        """Remember the video.

        Raises:
            BackendUnavailable: it is closed.
            BundleError: the rows are not `width` wide.
        """
        self._check(video)
        self._turn += 1
        reused = video.key in self._held
        self._held.add(video.key)
        return Prefix(len(video.rows), 0.0, reused)

    def prefix_state(self, video: VideoRows) -> bytes:
        """The video's key; raises as `prefill_video` does."""
        self.prefill_video(video)
        return video.key.encode()

    def restore_prefix(self, video: VideoRows, state: bytes) -> bool:
        """Remember the video if the state is of it."""
        self._turn += 1
        fits = state == video.key.encode()
        self._held |= {video.key} if fits else set()
        return fits

    def forget(self) -> None:
        """Remember no video."""
        self._turn += 1
        self._held.clear()

    @property
    def state_identity(self) -> str:
        """Its name."""
        return self.name

    def stream(
        self,
        video: VideoRows,
        question: str,
        options: DecodingOptions | None = None,
        history: Sequence[Exchange] = (),
    ) -> TextStream:
        """The next queued text, word by word.

        Raises:
            BackendUnavailable: it is closed.
            BundleError: the rows are not `width` wide.
            PromptError: the question is empty.
            AssertionError: nothing is queued: the test asked more than it prepared.
        """
        words = question_text(question).split()
        prefix = self.prefill_video(video)
        self.calls.append((video.key, question))
        self.histories.append(tuple(history))
        if not self._texts:
            raise AssertionError(f"nothing queued for {question!r}; call enqueue(text) first")
        tokens = re.findall(r"\s*\S+", self._texts.popleft())
        limit = options.max_tokens if options else len(tokens)
        said: list[str] = []
        turn = self._turn

        def pieces() -> Generator[str, None, None]:
            for token in tokens[:limit]:
                self._require_open()
                if self._turn != turn:
                    raise StreamEnded
                said.append(token)
                yield token

        return TextStream(
            pieces(),
            lambda: Generation(
                text="".join(said),
                prompt_tokens=prefix.tokens + len(words),
                generated_tokens=len(said),
                reused_prefix=prefix.reused,
                stopped=len(said) == len(tokens),
            ),
        )

    def ask(
        self, video: VideoRows, question: str, options: DecodingOptions | None = None
    ) -> Generation:
        """The next queued text at once; raises as `stream` does."""
        return self.stream(video, question, options).read()

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        """The next queued scores.

        Raises:
            BackendUnavailable: it is closed.
            BundleError: the rows are not `width` wide.
            PromptError: the question is empty, or as for `check_choices`.
        """
        check_choices(choices)
        question_text(question)
        self.prefill_video(video)
        self.calls.append((video.key, question))
        totals = (
            self._scores.popleft()
            if self._scores
            else tuple(-float(i) for i in range(len(choices)))
        )
        return ChoiceScores(choices=tuple(choices), totals=totals)

    def ask_many(
        self, prompts: Sequence[Prompt], options: DecodingOptions | None = None
    ) -> list[Generation]:
        """The next queued texts in order; raises as `stream` does."""
        self._check_all(prompts)
        return [self.ask(prompt.video, prompt.question, options) for prompt in prompts]

    def score_many(self, prompts: Sequence[Prompt], answer: str) -> list[float]:
        """The first of the next queued scores each; raises as `score_choices` does."""
        check_choices([answer])
        self._check_all(prompts)
        return [self.score_choices(p.video, p.question, [answer]).totals[0] for p in prompts]

    def _check_all(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            question_text(prompt.question)
            self._check(prompt.video)

    def _check(self, video: VideoRows) -> None:
        self._require_open()
        if video.rows.shape[1] != self.width:
            raise BundleError(
                f"rows are {video.rows.shape[1]} wide, {self.name} reads {self.width}"
            )

    def _require_open(self) -> None:
        if self.closed:
            raise BackendUnavailable(f"{self.name} is closed; open the language model again")

    def close(self) -> None:
        """Refuse further questions; twice is fine."""
        self.closed = True

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
