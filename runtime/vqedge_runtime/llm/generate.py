"""Questions about a video, answered by llama.cpp: greedy, sampled, streamed, or scored."""

from __future__ import annotations

import codecs
import math
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from vqedge.errors import BackendUnavailable, ConfigError, PromptError
from vqedge.prompt import SYSTEM
from vqedge_runtime.cores import usable_cores
from vqedge_runtime.llm.cells import Cells, Ids
from vqedge_runtime.llm.handles import BRANCHES, Model, Sampler
from vqedge_runtime.llm.protocol import (
    ChoiceScores,
    DecodingOptions,
    Generation,
    Prefix,
    Rows,
    TextStream,
    VideoRows,
)
from vqedge_runtime.llm.reader import Reader

_GREEDY = DecodingOptions()


@dataclass
class _Turn:
    """One question under way: where the context stands, what has been said and when."""

    prefix: Prefix
    prompt_tokens: int
    video_tokens: int
    question_ms: float
    started: float
    unread: int | None = None  # the last token generated, not in the context yet
    text: str = ""
    generated: int = 0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    stopped: bool = False

    def generation(self) -> Generation:
        return Generation(
            text=self.text,
            prompt_tokens=self.prompt_tokens,
            video_tokens=self.video_tokens,
            generated_tokens=self.generated,
            prefix_ms=self.prefix.ms,
            question_ms=self.question_ms,
            first_token_ms=self.first_token_ms,
            total_ms=self.total_ms,
            reused_prefix=self.prefix.reused,
            stopped=self.stopped,
        )


class LlamaCpp:
    """A GGUF model that answers questions about videos. Make one with `LlamaCpp.open`.

    One lock guards every call, so threads may share it and take turns. A stream gives the lock back
    between pieces; a newer call from anywhere ends it. The context holds the last video's prefix
    and grows, by reading it again, when a prompt asks for more room.
    """

    def __init__(self, model: Model, reader: Reader) -> None:
        """Take over an open model and its reader; `open` is the usual way."""
        self._lock = threading.RLock()
        self._model = model
        self._reader = reader
        self._turn: _Turn | None = None
        self._end_of_turn = _end_of_turn(model)
        self.name = f"llama.cpp {_device(model.gpu_layers)} {model.quantisation}"
        self.width = model.width

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        context: int = 2048,
        max_context: int | None = None,
        gpu_layers: int = 0,
        system: str = SYSTEM,
    ) -> Self:
        """Load a GGUF file.

        Args:
            path: the file.
            threads: None for as many as there are cores this process may use.
            context: positions to allocate at first, >= 1.
            max_context: positions to grow to; None for what the model was trained with, which is
                also the most.
            gpu_layers: layers to keep on the GPU, -1 for all, 0 for the CPU alone.
            system: the system message, the one the model was trained with.

        Raises:
            BackendUnavailable: GPU layers asked of a build without GPU, or no memory.
            BundleError: the file is missing or cannot be read.
            ConfigError: a number is out of range.
            PromptError: the file's chat template cannot be used.
        """
        numbers = {"threads": threads, "context": context, "max_context": max_context}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        with ExitStack() as stack:
            model = stack.enter_context(Model(Path(path), gpu_layers))
            limit = min(max_context or model.trained_context, model.trained_context)
            reader = Reader(model, threads or usable_cores(), context, limit, system)
            stack.callback(reader.close)
            opened = cls(model, reader)
            stack.pop_all()
        return opened

    def tokens_from_text(self, text: str) -> list[int]:
        """Token ids of a text; special tokens are not parsed, nothing is added."""
        with self._lock:
            return self._model.tokens_from_text(text, special=False)

    def prefill_video(self, video: VideoRows) -> Prefix:
        """Read the video ahead of its first question.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: more rows than the model can read.
        """
        with self._lock:
            self._turn = None
            return self._reader.read_video(video)

    def stream(
        self, video: VideoRows, question: str, options: DecodingOptions = _GREEDY
    ) -> TextStream:
        """Read video and question now; answer while the result is iterated.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: the question is empty, or all does not fit the context.
        """
        with self._lock:
            turn = self._begin(video, question, options.max_tokens)
            pieces = self._pieces(turn, Sampler(self._model, options), options.max_tokens)
            return TextStream(pieces, turn.generation)

    def ask(
        self, video: VideoRows, question: str, options: DecodingOptions = _GREEDY
    ) -> Generation:
        """Answer in one go, with the text `stream` gives; raises as `stream` does."""
        with self._lock, self.stream(video, question, options) as stream:
            return stream.read()

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        """Log-likelihood of each answer with its end of turn; video and question are read once.

        Args:
            video: what is asked about.
            question: the user's words.
            choices: the answers, space around them ignored.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: no choice, an empty one, or as for `stream`.
        """
        if not choices or not all(choice.strip() for choice in choices):
            raise PromptError("every choice needs a word, as: --choices 'red|blue'")
        with self._lock:
            answers = [[*self.tokens_from_text(c.strip()), self._end_of_turn] for c in choices]
            turn, totals = self._read_and_score(video, question, answers)
            return ChoiceScores(
                choices=tuple(choices),
                totals=totals,
                token_counts=tuple(map(len, answers)),
                prompt_tokens=turn.prompt_tokens,
                video_tokens=turn.video_tokens,
                prefix_ms=turn.prefix.ms,
                question_ms=turn.question_ms,
                total_ms=_ms_since(turn.started),
                reused_prefix=turn.prefix.reused,
            )

    def logits(self, *pieces: Sequence[int] | Ids | Rows) -> Rows:
        """Logits after every position of a prompt, for comparison with another implementation.

        The held prefix is lost. The result is large: 400 MB for 2,048 positions of SmolLM2.

        Args:
            pieces: in order; token ids `[n]`, or embedding rows float32 `[n, width]`.

        Returns:
            float32 `[n in all, vocab]`.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: rows are not as wide as the model's.
            PromptError: too long, or an id is not in the vocabulary.
        """
        with self._lock:
            self._turn = None
            rows = self._reader.logits(pieces)
            out = np.empty((sum(map(len, pieces)), self._model.vocab_size), np.float32)
            for index, row in enumerate(rows):
                out[index] = row
            return out

    def close(self) -> None:
        """Free model and context; twice is fine."""
        with self._lock:
            self._turn = None
            self._reader.close()
            self._model.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Close in order, context before model, unless the interpreter is going down."""
        if not sys.is_finalizing() and hasattr(self, "_reader"):
            self.close()

    def _begin(self, video: VideoRows, question: str, answer_tokens: int) -> _Turn:
        """Read everything before the answer; end any other turn."""
        self._turn = None
        started = time.perf_counter()
        prefix, suffix_tokens = self._reader.read_question(video, question, answer_tokens)
        self._turn = _Turn(
            prefix=prefix,
            prompt_tokens=prefix.tokens + suffix_tokens,
            video_tokens=len(video.rows),
            question_ms=_ms_since(started) - prefix.ms,
            started=started,
        )
        return self._turn

    def _pieces(self, turn: _Turn, sampler: Sampler, max_tokens: int) -> Generator[str, None, None]:
        """Generate until the end of the turn; characters come whole."""
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        with sampler:
            ended = False
            while not ended:
                data = self._step(turn, sampler) if turn.generated < max_tokens else None
                ended = data is None
                if piece := utf8.decode(data or b"", final=ended):
                    turn.text += piece
                    yield piece

    def _step(self, turn: _Turn, sampler: Sampler) -> bytes | None:
        """The bytes of one more token, None at the end of the turn."""
        with self._lock:
            context = self._reader.context
            if self._turn is not turn:
                raise BackendUnavailable("a newer question ended this stream; ask this one again")
            if turn.unread is not None:
                end = turn.prompt_tokens + turn.generated - 1
                context.read(Cells.at(end, [turn.unread], logits="last"))
            token = sampler.sample(context)
            if not turn.generated and self._model.is_end(token):
                token = self._likeliest_word(context.last_logits())
            turn.total_ms = _ms_since(turn.started)
            turn.first_token_ms = turn.first_token_ms or turn.total_ms
            if self._model.is_end(token):
                turn.stopped = True
                return None
            turn.unread = token
            turn.generated += 1
            return self._model.bytes_from_token(token)

    def _likeliest_word(self, logits: Rows) -> int:
        """The best token that does not end the turn: an answer is never empty."""
        order = np.argsort(-logits, kind="stable")
        return next(int(token) for token in order if not self._model.is_end(int(token)))

    def _read_and_score(
        self, video: VideoRows, question: str, answers: Sequence[Sequence[int]]
    ) -> tuple[_Turn, tuple[float, ...]]:
        """The prompt once, then groups of answers as parallel branches of it."""
        groups = [answers[i : i + BRANCHES] for i in range(0, len(answers), BRANCHES)]
        turn = self._begin(video, question, max(sum(map(len, group)) for group in groups))
        self._turn = None  # the branches overwrite the logits a stream would go on from
        first = _log_likelihoods(self._reader.context.last_logits())
        totals = (total for group in groups for total in self._branch(turn, first, group))
        return turn, tuple(totals)

    def _branch(
        self, turn: _Turn, first: npt.NDArray[np.float64], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-likelihood of each answer, given that of every first token."""
        totals = [float(first[answer[0]]) for answer in answers]
        cells = Cells.branching(turn.prompt_tokens, [answer[:-1] for answer in answers])
        targets = [(number, token) for number, answer in enumerate(answers) for token in answer[1:]]
        context = self._reader.context
        with context.branches(len(answers)):
            for (number, token), row in zip(targets, context.logits(cells), strict=True):
                totals[number] += float(_log_likelihoods(row)[token])
        return totals


def _end_of_turn(model: Model) -> int:
    """The id that the chat template puts after an answer."""
    talk = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "[[answer]]"}]
    _, _, tail = model.render_chat(talk, open_answer=False).partition("[[answer]]")
    ids = model.tokens_from_text(tail, special=True)
    return next(filter(model.is_end, ids), model.end_of_text)


def _log_likelihoods(logits: Rows) -> npt.NDArray[np.float64]:
    """Log-softmax of one row."""
    wide = logits.astype(np.float64)
    peak = float(wide.max())
    return wide - (peak + math.log(np.exp(wide - peak).sum()))


def _device(gpu_layers: int) -> str:
    layers = "all" if gpu_layers < 0 else gpu_layers
    return f"GPU ({layers} layers)" if gpu_layers else "CPU"


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
