"""Questions about a video, answered by llama.cpp: greedy, sampled, streamed, or scored."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np
from typing_extensions import Self

from vqedge.cores import check_threads, usable_cores
from vqedge.errors import ConfigError, StreamEnded
from vqedge.prompt import SYSTEM, question_text
from vqedge_runtime.llm import many
from vqedge_runtime.llm.cells import Cells, Ids
from vqedge_runtime.llm.embeddings import EmbeddingTable
from vqedge_runtime.llm.handles import Model, Sampler
from vqedge_runtime.llm.native import system_info
from vqedge_runtime.llm.prefixes import MOST_BYTES
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
from vqedge_runtime.llm.reader import Reader
from vqedge_runtime.llm.scoring import groups_of, totals_of
from vqedge_runtime.llm.turn import Turn, ms_since

_GREEDY = DecodingOptions()


class LlamaCpp:
    """A GGUF model that answers questions about videos. Make one with `LlamaCpp.open`.

    One lock guards every call, so threads may share it and take turns. A stream gives the lock back
    between pieces; a newer call from anywhere ends it. The context holds the last video's prefix,
    those before it are set aside in memory (128 MiB of them by default, the least recently used go
    first), and it grows when a prompt asks for more room.
    """

    def __init__(self, model: Model, reader: Reader) -> None:
        """Take over an open model and its reader; `open` is the usual way."""
        self._lock = threading.RLock()
        self._model = model
        self._reader = reader
        self._path = model.path.absolute()  # now: the process may go elsewhere
        self._turn: Turn | None = None
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
        gpu_layers: int | None = None,
        system: str = SYSTEM,
        most_aside_bytes: int = MOST_BYTES,
    ) -> Self:
        """Load a GGUF file.

        Args:
            path: the file.
            threads: None for as many as there are cores this process may use.
            context: positions to allocate at first, >= 1.
            max_context: positions to grow to; None for what the model was trained with, which is
                also the most.
            gpu_layers: layers to keep on the GPU, -1 for all, 0 for the CPU alone; None for all
                where this build finds a GPU.
            system: the system message, the one the model was trained with.
            most_aside_bytes: of all prefixes set aside in memory; 0 for none.

        Raises:
            BackendUnavailable: GPU layers asked of a build without GPU, or no memory.
            BundleError: the file is missing or cannot be read.
            ConfigError: a number is out of range.
            PromptError: the file's chat template cannot be used.
        """
        check_threads(threads)
        for name, value in {"context": context, "max_context": max_context}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        with ExitStack() as stack:
            model = stack.enter_context(Model(Path(path), gpu_layers))
            limit = min(max_context or model.trained_context, model.trained_context)
            reader = Reader(
                model, threads or usable_cores(), context, limit, system, most_aside_bytes
            )
            stack.callback(reader.close)
            opened = cls(model, reader)
            stack.pop_all()
        return opened

    def tokens_from_text(self, text: str) -> list[int]:
        """Token ids of a text; special tokens are not parsed, nothing is added."""
        with self._lock:
            return self._model.tokens_from_text(text, special=False)

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Ids before and after the video, as `ask` reads them.

        Raises:
            PromptError: the question is empty.
        """
        with self._lock:
            chat = self._reader.chat
            return list(chat.before_video), chat.after_video(question)

    def question_embedding(self, question: str) -> Rows:
        """The mean of the input embeddings of a question's words, float32 `[width]`.

        Raises:
            BackendUnavailable: the model is closed, or this llama.cpp does not let anyone read its
                files.
            BundleError: the file holds no input embeddings, or others than those opened.
            PromptError: the question is empty.
        """
        with self._lock:
            ids = self.tokens_from_text(question_text(question))
            mean: Rows = self._embeddings.rows(ids).mean(axis=0)
            return mean

    @functools.cached_property
    def _embeddings(self) -> EmbeddingTable:
        return EmbeddingTable(self._path, self._model.width, self._model.vocab_size)

    def prefill_video(self, video: VideoRows) -> Prefix:
        """Read the video ahead of its first question.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: more rows than the model can read.
        """
        with self._lock:
            self._reader.check_video(video)
            self._turn = None
            return self._reader.read_video(video)

    def prefix_state(self, video: VideoRows) -> bytes:
        """The keys and values of a video's prefix, read if need be; raises as `prefill_video`."""
        with self._lock:
            self.prefill_video(video)
            return self._reader.context.state()

    def restore_prefix(self, video: VideoRows, state: bytes) -> bool:
        """Take them back instead of reading the video; raises as `prefill_video`.

        Args:
            video: what they are of.
            state: what `prefix_state` gave, of the same `state_identity`: llama.cpp trusts it.

        Returns:
            whether they fit; if not, the next question reads the video.
        """
        with self._lock:
            self._reader.check_video(video)
            self._turn = None
            return self._reader.restore_video(video, state)

    def forget(self) -> None:
        """Drop all prefixes: the next question about any video reads it. Ends a stream."""
        with self._lock:
            self._turn = None
            self._reader.forget()

    @property
    def state_identity(self) -> str:
        """What a prefix's state depends on beside file and rows: build, device, template."""
        return f"{system_info()} {self.name} {tuple(self._reader.chat.before_video)}"

    def stream(
        self,
        video: VideoRows,
        question: str,
        options: DecodingOptions = _GREEDY,
        history: Sequence[Exchange] = (),
    ) -> TextStream:
        """Read video and question now; answer while the result is iterated.

        Args:
            video: what is asked about.
            question: the user's words.
            options: how to pick tokens.
            history: earlier turns about the same video, the oldest first; what they begin with as
                those of the last call is not read again.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: a question is empty, all does not fit the context, or the chat template
                has no second turn.
        """
        with self._lock:
            turn = self._begin(video, question, options.max_tokens, history)
            pieces = self._pieces(turn, Sampler(self._model, options), options.max_tokens)
            return TextStream(pieces, turn.generation)

    def ask(
        self, video: VideoRows, question: str, options: DecodingOptions = _GREEDY
    ) -> Generation:
        """Answer in one go, with the text `stream` gives; raises as `stream` does."""
        with self._lock, self.stream(video, question, options) as stream:
            return stream.read()

    def ask_many(
        self, prompts: Sequence[Prompt], options: DecodingOptions = _GREEDY
    ) -> list[Generation]:
        """Answer several prompts side by side: questions about one video, or several videos.

        Args:
            prompts: in any number and order; those about one video are read fastest together.
            options: of every answer.

        Returns:
            an answer each, as `ask` gives it up to rounding: a token that was as likely as
            another may turn. Times count from the beginning of the group that was read together.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: rows are not as wide as the model's.
            PromptError: a question is empty, or does not fit the context.
        """
        with self._lock:
            suffixes = self._suffixes(prompts, options.max_tokens)
            return many.generate(self._model, self._reader, prompts, suffixes, options)

    def score_many(self, prompts: Sequence[Prompt], answer: str) -> list[float]:
        """Log-likelihood of an answer with its end of turn, after each of several prompts.

        Args:
            prompts: videos and questions; what their videos begin with alike is read once.
            answer: the same after each, space around it ignored.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: rows are not as wide as the model's.
            PromptError: the answer or a question is empty, or does not fit the context.
        """
        with self._lock:
            ids = self._reader.chat.answer_ids(answer)
            suffixes = self._suffixes(prompts, len(ids))
            return many.score(self._reader, prompts, suffixes, ids)

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        """Log-likelihood of each answer with its end of turn; video and question are read once.

        Args:
            video: what is asked about.
            question: the user's words.
            choices: the answers, all different, space around them ignored.

        Raises:
            BackendUnavailable: the model is closed or failed.
            BundleError: the rows are not as wide as the model's.
            PromptError: as for `check_choices` or `stream`.
        """
        check_choices(choices)
        with self._lock:
            answers = [self._reader.chat.answer_ids(choice) for choice in choices]
            groups = groups_of(answers, self._reader.room_after(video, question))
            turn = self._begin(video, question, max(sum(map(len, group)) for group in groups))
            self._turn = None  # the branches overwrite the logits a stream would go on from
            totals = totals_of(self._reader.context, turn.prompt_tokens, groups)
            return ChoiceScores(
                choices=tuple(choices),
                totals=totals,
                prefix_ms=turn.prefix.ms,
                question_ms=turn.question_ms,
                total_ms=ms_since(turn.started),
            )

    def logits(self, *pieces: Sequence[int] | Ids | Rows) -> Rows:
        """Logits after every position of a prompt, for comparison with another implementation.

        The result is large: 400 MB for 2,048 positions of SmolLM2.

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
            vars(self).pop("_embeddings", None)
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

    def _begin(
        self,
        video: VideoRows,
        question: str,
        answer_tokens: int,
        history: Sequence[Exchange] = (),
    ) -> Turn:
        """Read everything before the answer; end any other turn, unless this one is refused."""
        started = time.perf_counter()
        suffix = self._reader.suffix(Prompt(video, question), answer_tokens, history)
        self._turn = None
        prefix = self._reader.read_question(video, suffix, answer_tokens, bool(history))
        self._turn = Turn(
            prefix=prefix,
            prompt_tokens=prefix.tokens + len(suffix),
            question_ms=ms_since(started) - prefix.ms,
            started=started,
        )
        return self._turn

    def _suffixes(self, prompts: Sequence[Prompt], answer_tokens: int) -> list[list[int]]:
        """What comes after each video; end any turn, unless a prompt is refused or there is none.

        Raises:
            BundleError: rows are not as wide as the model's.
            PromptError: a question is empty, or does not fit the context.
        """
        suffixes = [self._reader.suffix(prompt, answer_tokens, ()) for prompt in prompts]
        if prompts:
            self._turn = None
        return suffixes

    def _pieces(self, turn: Turn, sampler: Sampler, max_tokens: int) -> Generator[str, None, None]:
        """Generate until the end of the turn; characters come whole."""
        with sampler:
            ended = False
            while not ended:
                data = self._step(turn, sampler) if turn.generated < max_tokens else None
                ended = data is None
                if piece := turn.say(data):
                    yield piece

    def _step(self, turn: Turn, sampler: Sampler) -> bytes | None:
        """The bytes of one more token, None at the end of the turn."""
        with self._lock:
            context = self._reader.context
            if self._turn is not turn:
                raise StreamEnded
            if turn.unread is not None:
                context.read(Cells.at(turn.end, [turn.unread], logits="last"))
            return turn.next_token(self._model, context, sampler)


def _device(gpu_layers: int) -> str:
    layers = "all" if gpu_layers < 0 else gpu_layers
    return f"GPU ({layers} layers)" if gpu_layers else "CPU"
