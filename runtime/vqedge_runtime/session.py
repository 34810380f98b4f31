"""`VideoQA`: open a bundle, encode a video once, ask many questions about it.

with VideoQA.open("tiny.vqedge") as qa:
    video = qa.encode("clip.mp4")
    print(qa.ask(video, "What color is the circle?").text)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from vqedge.budget import ADAPTIVE, Budget
from vqedge.bundle import Manifest, open_bundle
from vqedge.errors import BackendUnavailable, ConfigError
from vqedge_runtime.encoders import AUTO, Encoder, Frames, open_encoder
from vqedge_runtime.llm import (
    ChoiceScores,
    DecodingOptions,
    Generation,
    LanguageModel,
    TextStream,
    VideoRows,
    open_llama_cpp,
)
from vqedge_runtime.tokens import TokenSet
from vqedge_runtime.video import Clip, clip_from_path

PathLike = str | os.PathLike[str]


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


@dataclass(frozen=True)
class Video:
    """An encoded clip: ask it as often as you like.

    Attributes:
        tokens: the discrete tokens.
        duration_s: length of the span that was sampled, 0 for an image.
        frames: frames sampled.
        times_s: time of each sampled frame from the start of the file.
        timings: what decoding and encoding took.
    """

    tokens: TokenSet
    duration_s: float
    frames: int
    times_s: tuple[float, ...]
    timings: Timings

    @property
    def rows(self) -> VideoRows:
        """The rows as the language model takes them."""
        return VideoRows(self.tokens.rows, self.tokens.key())


@dataclass(frozen=True)
class Answer:
    """An answer with what it cost.

    Attributes:
        text: the answer; with choices, the likeliest one.
        tokens: rows of the video that the language model read.
        timings: wall times.
        backend: what ran where.
        video: the clip it is about.
        choice_scores: probability of every choice, empty without choices.
        generated_tokens: tokens of the answer.
        tokens_per_s: generation speed after the first token.
    """

    text: str
    tokens: int
    timings: Timings
    backend: Backend
    video: Video
    choice_scores: dict[str, float] = field(default_factory=dict)
    generated_tokens: int = 0
    tokens_per_s: float = 0.0

    def including_encoding(self) -> Answer:
        """The same answer with the video's own times added: what a cold ask costs."""
        spent, own = self.video.timings, self.timings
        return replace(self, timings=_with_llm(spent, own.prefill, own.first_token, own.total))


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; `answer` is complete once the iteration has ended."""

    def __init__(self, session: VideoQA, video: Video, stream: TextStream, spent: Timings) -> None:
        self._session, self._video, self._stream, self._spent = session, video, stream, spent

    def __next__(self) -> str:
        """The next piece of text."""
        return next(self._stream)

    def close(self) -> None:
        """Stop generating."""
        self._stream.close()

    @property
    def answer(self) -> Answer:
        """What was generated so far, with counts and times."""
        return self._session._answer(self._video, self._stream.result, self._spent)


class VideoQA:
    """Answers questions about videos.

    Owns an encoder and a language model; close it, or use `with`.

    Not thread safe: calls on one object must not overlap.

    Args:
        encoder: frames to tokens.
        llm: tokens to text.
        manifest: what the bundle says about both.
    """

    def __init__(self, encoder: Encoder, llm: LanguageModel, manifest: Manifest) -> None:
        self.encoder, self.llm, self.manifest = encoder, llm, manifest
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: PathLike,
        *,
        encoder: str = AUTO,
        threads: int | None = None,
        context: int = 2048,
        gpu_layers: int = 0,
    ) -> Self:
        """Open and verify a bundle and load both of its models.

        Args:
            bundle: a `NAME.vqedge` folder.
            encoder: backend of the encoder, as `vqedge doctor` lists them; `auto` is the fastest
                here, measured once.
            threads: CPU threads of both models; all that this process may use by default.
            context: tokens that video, question and answer may take together.
            gpu_layers: layers of the language model to put on a GPU, if llama.cpp was built for
                one.

        Raises:
            BundleError: the bundle is missing, altered or of another version.
            BackendUnavailable: a needed library is missing, or the backend cannot run here.
        """
        opened = open_bundle(Path(bundle))
        manifest = opened.manifest
        with ExitStack() as stack:
            engine = open_encoder(encoder, opened, threads)
            stack.callback(engine.close)
            llm = open_llama_cpp(
                opened.path_of("llm"),
                threads=threads,
                context=context,
                gpu_layers=gpu_layers,
                system=manifest.llm.system_prompt,
            )
            stack.pop_all()
        return cls(engine, llm, manifest)

    @property
    def backend(self) -> Backend:
        """What runs where."""
        return Backend(self.encoder.name, self.llm.name)

    def encode(
        self,
        video: PathLike,
        budget: Budget | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Video:
        """Decode, sample and encode a video, an image, or a folder of frames.

        Args:
            video: path of the file or folder.
            budget: most tokens to use, or "auto" for as many as the clip needs; the bundle's
                default if not given.
            start_s: start of the span to look at, seconds.
            end_s: end of the span, seconds.

        Raises:
            VideoError: nothing in the file can be decoded, or the span is empty.
            ConfigError: the budget is out of range, or "auto" where the bundle has a fixed one.
        """
        codes = self.checked_budget(budget)
        spec = self.manifest.encoder
        clip = clip_from_path(Path(video), spec.frames, spec.size, start_s, end_s)
        return self._encoded(clip, codes)

    def encode_frames(self, frames_thwc: Frames, budget: Budget | None = None) -> Video:
        """Encode frames: uint8 RGB `[T, size, size, 3]` of the bundle's T and size.

        Raises:
            ConfigError: wrong shape or type, or the budget is out of range.
        """
        spec = self.manifest.encoder
        wanted = (spec.frames, spec.size, spec.size, 3)
        if frames_thwc.shape != wanted or frames_thwc.dtype.name != "uint8":
            raise ConfigError(
                f"frames are {frames_thwc.dtype} {frames_thwc.shape}, want uint8 {wanted}"
            )
        tokens, encode_ms = self._tokens(frames_thwc, self.checked_budget(budget))
        return Video(tokens, 0.0, spec.frames, (), Timings(encode=encode_ms))

    def ask(
        self,
        video: Video | PathLike,
        question: str,
        *,
        choices: Sequence[str] = (),
        options: DecodingOptions | None = None,
    ) -> Answer:
        """Answer a question.

        Args:
            video: an encoded video, or a path to encode first.
            question: the user's words.
            choices: if given, score these answers instead of generating one.
            options: how to pick tokens; greedy by default.

        Raises:
            PromptError: the question is empty or too long for the context.
            VideoError: the path cannot be decoded.
        """
        encoded, spent = self._encoded_and_spent(video)
        if choices:
            scores = self.llm.score_choices(encoded.rows, question, choices)
            return self._choice_answer(encoded, scores, spent)
        generation = self.llm.ask(encoded.rows, question, options or DecodingOptions())
        return self._answer(encoded, generation, spent)

    def stream(
        self, video: Video | PathLike, question: str, *, options: DecodingOptions | None = None
    ) -> AnswerStream:
        """Answer piece by piece; see `ask`."""
        encoded, spent = self._encoded_and_spent(video)
        stream = self.llm.stream(encoded.rows, question, options or DecodingOptions())
        return AnswerStream(self, encoded, stream, spent)

    def close(self) -> None:
        """Free both models; twice is fine."""
        self._closed = True
        with ExitStack() as stack:
            stack.callback(self.encoder.close)
            stack.callback(self.llm.close)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def checked_budget(self, budget: Budget | None) -> int:
        """The budget as the encoder takes it: the bundle's default, or the given one.

        Raises:
            ConfigError: it is out of range, or "auto" where the bundle has a fixed one.
        """
        quantizer = self.manifest.quantizer
        if budget is None:
            return quantizer.default_budget
        if budget == "auto":
            if quantizer.adaptive_error is None:
                raise ConfigError(
                    "--budget auto: this bundle has a fixed budget; give a number of tokens"
                )
            return ADAPTIVE
        if not 1 <= budget <= quantizer.codes:
            raise ConfigError(f"--budget {budget}: this bundle takes 1 to {quantizer.codes} tokens")
        return budget

    def _encoded(self, clip: Clip, budget: int) -> Video:
        tokens, encode_ms = self._tokens(clip.frames_thwc, budget)
        timings = Timings(clip.decode_ms, clip.preprocess_ms, encode_ms)
        return Video(tokens, clip.duration_s, len(clip.frames_thwc), clip.times_s, timings)

    def _tokens(self, frames: Frames, budget: int) -> tuple[TokenSet, float]:
        if self._closed:
            raise BackendUnavailable("this VideoQA is closed; open the bundle again")
        began = time.perf_counter()
        tokens = self.encoder.encode(frames, budget)
        return tokens, (time.perf_counter() - began) * 1e3

    def _encoded_and_spent(self, video: Video | PathLike) -> tuple[Video, Timings]:
        """The encoded video and what this call spent on it: nothing, if it came encoded."""
        if isinstance(video, Video):
            return video, Timings()
        encoded = self.encode(video)
        return encoded, encoded.timings

    def _answer(self, video: Video, result: Generation, spent: Timings) -> Answer:
        prefill_ms = result.prefix_ms + result.question_ms
        return Answer(
            result.text,
            video.tokens.count,
            _with_llm(spent, prefill_ms, result.first_token_ms, result.total_ms),
            self.backend,
            video,
            generated_tokens=result.generated_tokens,
            tokens_per_s=result.tokens_per_s,
        )

    def _choice_answer(self, video: Video, scores: ChoiceScores, spent: Timings) -> Answer:
        prefill_ms = scores.prefix_ms + scores.question_ms
        timings = _with_llm(spent, prefill_ms, prefill_ms, scores.total_ms)
        probabilities = dict(zip(scores.choices, scores.probabilities, strict=True))
        return Answer(scores.best, video.tokens.count, timings, self.backend, video, probabilities)


def _with_llm(spent: Timings, prefill: float, first_token: float, total: float) -> Timings:
    """Timings of the whole ask: the encoder's stages come before the language model's."""
    before = spent.decode + spent.preprocess + spent.encode
    return replace(spent, prefill=prefill, first_token=before + first_token, total=before + total)
