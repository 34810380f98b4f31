"""What the model has read: template, video and question, kept in one growing context.

    [template] [K video rows] [question, template]
    |------- prefix --------| |------ suffix ------|

The prefix of the last video stays, so the next question about it reads its own tokens only, and of
earlier turns what the last question's did not begin with. When another video takes its place it is
set aside in memory (see `prefixes`), and put back, bit for bit, when it is asked about again. The
template before the video is read when the model is opened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import eq

import numpy as np
import numpy.typing as npt

from vqedge.errors import BackendUnavailable, BundleError, ConfigError, PromptError
from vqedge_runtime.llm.cells import Cells, Ids
from vqedge_runtime.llm.chat_template import ChatTemplate
from vqedge_runtime.llm.handles import Context, Model
from vqedge_runtime.llm.prefixes import Prefixes
from vqedge_runtime.llm.protocol import Exchange, Prefix, Prompt, Rows, VideoRows


@dataclass(frozen=True)
class Placed:
    """A prompt whose video is in a sequence of its own.

    Attributes:
        prefix: template and video, there already.
        question: what is still to be read, with logits at its end.
    """

    prefix: Prefix
    question: Cells


class Reader:
    """Reads prompts into a context that it owns, and makes a larger one when a prompt needs it."""

    def __init__(
        self,
        model: Model,
        threads: int,
        size: int,
        limit: int,
        system: str,
        most_aside_bytes: int,
    ) -> None:
        """Tokenise the template and allocate the first context.

        Args:
            model: stays the caller's, who closes it after this.
            threads: for reading and generating.
            size: positions to start with, >= 1.
            limit: positions to grow to.
            system: the system message.
            most_aside_bytes: of all prefixes set aside; 0 for none.

        Raises:
            BackendUnavailable: no memory for the context.
            ConfigError: the template does not fit the limit with a row after it.
            PromptError: the file's chat template cannot be used.
        """
        self._model = model
        self._threads = threads
        self._start_size = min(size, limit)
        self._limit = limit
        self._closed = False
        self._context: Context | None = None
        self._held: VideoRows | None = None  # the video in sequence 0, after the template
        self._suffix: list[int] = []  # ids in sequence 0 after that video
        self._aside = Prefixes(most_aside_bytes)
        self._template_held = False
        self.chat = ChatTemplate(model, system)
        self._before = self.chat.before_video
        if limit <= len(self._before):
            least = len(self._before) + 1
            what = f"{self._bound}, the chat template and one row of a video take {least}"
            raise ConfigError(f"{what}; allow more")
        self._context_for(len(self._before))
        self._hold_template()

    @property
    def context(self) -> Context:
        """The context in use.

        Raises:
            BackendUnavailable: closed.
        """
        if self._closed or self._context is None:
            raise BackendUnavailable("the language model is closed; open it again")
        return self._context

    def check_video(self, video: VideoRows) -> None:
        """Refuse a video that cannot be read.

        Raises:
            BundleError: the rows are not as wide as the model's.
            PromptError: more rows than the model can read.
        """
        self._check_width(video.rows)
        self._needed(len(video.rows), 0, 0)

    def read_video(self, video: VideoRows) -> Prefix:
        """Leave the prefix of this video, which is checked, in the context, nothing after it.

        Raises:
            BackendUnavailable: closed, or llama.cpp failed.
        """
        self._make_room(len(video.rows), 0, 0)
        return self._hold(video)

    def restore_video(self, video: VideoRows, state: bytes) -> bool:
        """Take the prefix of a video, which is checked, from the context's `state`; if it fits.

        Raises:
            BackendUnavailable: closed.
        """
        self._make_room(len(video.rows), 0, 0)
        fits = self._put_back(video, state)
        if fits:
            self._aside.take(video.key)  # it is held now
        return fits

    def forget(self) -> None:
        """Drop every video's prefix; the template stays."""
        self._held = None
        self._aside.clear()

    def read_question(
        self, video: VideoRows, suffix: list[int], answer_tokens: int, keep_turns: bool = False
    ) -> Prefix:
        """Leave the prefix and this question in the context, and room for an answer.

        Args:
            video: what is asked about.
            suffix: what `suffix` gave of it.
            answer_tokens: room to leave.
            keep_turns: do not read again what the last suffix began with, too.

        Raises:
            BackendUnavailable: closed, or llama.cpp failed.
        """
        self._make_room(len(video.rows), len(suffix), answer_tokens)
        kept = self._keep_turns(video, suffix) if keep_turns else 0
        prefix = Prefix(self._length(video), 0.0, reused=True) if kept else self._hold(video)
        self.context.read(Cells.at(prefix.tokens + kept, suffix[kept:], logits="last"))
        self._suffix = suffix
        return prefix

    @contextmanager
    def read_side_by_side(
        self, prompts: Sequence[Prompt], suffixes: Sequence[Sequence[int]], answer_tokens: int
    ) -> Iterator[list[Placed]]:
        """Read the video of every prompt into a sequence of its own: 1, 2, ... in the block.

        Args:
            prompts: at least one, at most `BRANCHES`.
            suffixes: what `suffix` gave of each.
            answer_tokens: room to leave for each answer.

        Raises:
            BackendUnavailable: closed, or llama.cpp failed.
            PromptError: all does not fit the context.
        """
        videos = {prompt.video.key: prompt.video for prompt in prompts}
        trunk = prompts[0].video if len(videos) == 1 else self._held
        rows = len(trunk.rows) if trunk else 0
        rows += sum(len(video.rows) - _shared(trunk, video) for video in videos.values())
        self._make_room(rows, sum(map(len, suffixes)), answer_tokens * len(prompts))
        started = time.perf_counter()
        fresh = trunk is not None and not self._hold(trunk).reused
        if trunk is None:
            self._hold_template()
        with self.context.branches(len(prompts)):
            prefixes = self._read_branches([prompt.video for prompt in prompts], started, fresh)
            yield [
                Placed(prefix, Cells.at(prefix.tokens, suffix, "last", number))
                for number, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True), 1)
            ]

    def suffix(self, prompt: Prompt, answer_tokens: int, history: Sequence[Exchange]) -> list[int]:
        """Ids after the video of a prompt that can be read.

        Args:
            prompt: a video and a question.
            answer_tokens: room to leave for an answer.
            history: earlier turns, the oldest first.

        Raises:
            BundleError: the rows are not as wide as the model's.
            PromptError: a question is empty, all does not fit the context, or the chat template
                has no second turn.
        """
        self._check_width(prompt.video.rows)
        suffix = self.chat.after_video(prompt.question, history)
        self._needed(len(prompt.video.rows), len(suffix), answer_tokens)
        return suffix

    def room_after(self, video: VideoRows, question: str) -> int:
        """Positions that the largest context has after a question, at least one.

        Raises:
            PromptError: the question is empty, or there is none.
        """
        suffix = self.chat.after_video(question)
        return self._limit - self._needed(len(video.rows), len(suffix), 1) + 1

    @property
    def room_aside(self) -> int:
        """Positions that the largest context has beside the template and the video held."""
        held = 0 if self._held is None else len(self._held.rows)
        return self._limit - len(self._before) - held

    def logits(self, pieces: Sequence[Sequence[int] | Ids | Rows]) -> Iterator[Rows]:
        """Read ids and rows from scratch; the logits after each position, float32 `[vocab]`.

        Raises:
            BackendUnavailable: closed, or llama.cpp failed.
            BundleError: rows are not as wide as the model's.
            PromptError: too long, or an id is not in the vocabulary.
        """
        arrays = [np.asarray(piece) for piece in pieces if len(piece)]
        for array in arrays:
            self._check_width(array)
        count = sum(map(len, arrays))
        self._check_fit(count, f"{count} positions")
        return self._logits(self._context_for(count), arrays)

    def close(self) -> None:
        """Free the context; twice is fine."""
        self._closed = True
        self.forget()
        if self._context is not None:
            self._context.close()

    def _read_branches(
        self, videos: Sequence[VideoRows], started: float, fresh: bool
    ) -> list[Prefix]:
        """Fork a sequence for every video and read what none has read before it.

        Args:
            videos: a sequence each.
            started: when their reading began, of `time.perf_counter`.
            fresh: what they share was read just now.
        """
        firsts: dict[str, int] = {}
        unread, reused = [], []
        for number, video in enumerate(videos, 1):
            start = len(self._before) + _shared(self._held, video)
            first = firsts.setdefault(video.key, number)
            rest = video.inputs[start - len(self._before) :]
            reused.append(first != number or not (len(rest) or fresh))
            if first == number:
                self.context.fork(0, number, start)
            if first == number and len(rest):
                unread.append(Cells.at(start, rest, sequence=number))
        if unread:
            self.context.read(Cells.joined(unread))
        lengths = [len(self._before) + len(video.rows) for video in videos]
        for number, (video, length) in enumerate(zip(videos, lengths, strict=True), 1):
            if firsts[video.key] != number:
                self.context.fork(firsts[video.key], number, length)
        spent_ms = (time.perf_counter() - started) * 1e3
        return [Prefix(n, spent_ms, held) for n, held in zip(lengths, reused, strict=True)]

    def _holds(self, video: VideoRows) -> bool:
        return self._held is not None and self._held.key == video.key

    def _logits(self, context: Context, arrays: Sequence[Ids | Rows]) -> Iterator[Rows]:
        self._set_aside()
        self._template_held = False
        context.clear()
        start = 0
        for array in arrays:
            yield from context.logits(Cells.at(start, array, logits="all"))
            start += len(array)

    def _keep_turns(self, video: VideoRows, suffix: list[int]) -> int:
        """Leave what this suffix begins with after the video held; how many ids that are."""
        same = [*map(eq, self._suffix, suffix[:-1]), False]  # the last is read for its logits
        kept = same.index(False)
        self._suffix = []  # until this one is read, should that be interrupted
        fits = self._holds(video) and self.context.truncate(self._length(video) + kept)
        return kept if fits else 0

    def _hold(self, video: VideoRows) -> Prefix:
        self._suffix = []
        started = time.perf_counter()
        length = self._length(video)
        context = self.context
        reused = (self._holds(video) and context.truncate(length)) or self._take_back(video)
        if not reused:
            self._hold_template()
            context.read(Cells.at(len(self._before), video.inputs))
            self._held = video
        return Prefix(length, (time.perf_counter() - started) * 1e3, reused)

    def _length(self, video: VideoRows) -> int:
        """Positions of a video's prefix."""
        return len(self._before) + len(video.rows)

    def _set_aside(self) -> None:
        """Hold no video any longer; keep the prefix of the one held, if it is not too large."""
        held, self._held, self._suffix = self._held, None, []
        if held is None or not self.context.truncate(self._length(held)):
            return
        if self.context.state_bytes <= self._aside.most_bytes:
            self._aside.keep(held.key, self.context.state())

    def _take_back(self, video: VideoRows) -> bool:
        """Hold a video that was set aside, if there is one."""
        state = self._aside.take(video.key)
        return state is not None and self._put_back(video, state)

    def _put_back(self, video: VideoRows, state: bytes) -> bool:
        """Let a video's state take the place of all that is held; whether it fits."""
        self._set_aside()
        self._template_held = False
        fits = self.context.restore(state, self._length(video))
        self._held, self._template_held = (video if fits else None), fits
        return fits

    def _hold_template(self) -> None:
        """Leave the template's start alone in the context: it is read once for all videos."""
        self._set_aside()
        if not (self._template_held and self.context.truncate(len(self._before))):
            self._template_held = False  # until it is read, should that be interrupted
            self.context.clear()
            self.context.read(Cells.at(0, self._before))
            self._template_held = True

    def _make_room(self, video: int, question: int, answer: int) -> None:
        self._context_for(self._needed(video, question, answer))

    def _needed(self, video: int, question: int, answer: int) -> int:
        """Positions that a prompt and its answer take, which the context can have."""
        count = len(self._before) + video + question + answer
        self._check_fit(count, f"{video} video, {question} question and {answer} answer tokens")
        return count

    def _check_fit(self, count: int, what: str) -> None:
        if count > self._limit:
            raise PromptError(
                f"{what} need a context of {count}, {self._bound}; "
                "shorten the question, or lower the budget or max_tokens"
            )

    @property
    def _bound(self) -> str:
        """How long a context may be, and who says so."""
        if self._limit < self._model.trained_context:
            return f"max_context is {self._limit}"
        return f"{self._model.path.name} has {self._limit}"

    def _context_for(self, count: int) -> Context:
        """A context of at least `count` positions; a new one holds nothing."""
        if self._closed or (self._context is not None and self._context.size >= count):
            return self.context
        if self._context is not None:
            self._set_aside()
            old, self._context = self._context, None  # should closing it be interrupted
            old.close()
        self._template_held = False
        size = max(self._start_size, 1 << (count - 1).bit_length())
        self._context = Context(self._model, min(size, self._limit), self._threads)
        return self._context

    def _check_width(self, inputs: npt.NDArray[np.generic]) -> None:
        if inputs.ndim == 2 and inputs.shape[1] != self._model.width:
            raise BundleError(
                f"the video's rows are {inputs.shape[1]} wide, {self._model.path.name} reads "
                f"{self._model.width}; they are not of one bundle: export it again"
            )


def _shared(held: VideoRows | None, video: VideoRows) -> int:
    """Rows that a video begins with like the one held."""
    if held is None:
        return 0
    count = min(len(held.rows), len(video.rows))
    same = (held.rows[:count] == video.rows[:count]).all(axis=1)
    return count if same.all() else int(same.argmin())
