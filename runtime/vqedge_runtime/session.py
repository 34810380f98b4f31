"""`VideoQA`: open a bundle, encode a video once, ask many questions about it.

with VideoQA.open("tiny.vqedge") as qa:
    video = qa.encode("clip.mp4")
    print(qa.ask(video, "What color is the circle?").text)
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from vqedge.budget import Budget
from vqedge.bundle import Manifest, open_bundle
from vqedge.errors import BackendUnavailable, ConfigError, printable
from vqedge_runtime.answers import (
    Answer,
    AnswerStream,
    Backend,
    Timings,
    Video,
    chosen_answer,
    generated_answer,
)
from vqedge_runtime.bridge import Bridge, open_bridge
from vqedge_runtime.budget import codes_from_budget
from vqedge_runtime.encoders import AUTO, Encoder, Frames, open_encoder, require_backend
from vqedge_runtime.kv import read_kv, write_kv
from vqedge_runtime.llm import (
    DecodingOptions,
    Exchange,
    Generation,
    LanguageModel,
    Prefix,
    Prompt,
    open_llama_cpp,
)
from vqedge_runtime.stored import (
    origin_from_path,
    read_stored,
    segment_from_codes,
    segments_from_path,
    stamp_from_path,
    video_from_segment,
    write_stored,
)
from vqedge_runtime.tokens import TokenSet
from vqedge_runtime.video import Clip, clip_from_path
from vqedge_runtime.vqt import Header, Origin, Segment, header_for, is_vqt
from vqedge_runtime.vqt.header import PART_US

PathLike = str | os.PathLike[str]

NO_ENCODER = "none (codes from a file)"

logger = logging.getLogger(__name__)


class VideoQA:
    """Answers questions about videos.

    Owns an encoder and a language model; close it, or use `with`.

    Not thread safe: calls on one object must not overlap.

    Args:
        encoder: frames to codes, or what opens it when it is first needed.
        bridge: codes to tokens.
        llm: tokens to text.
        manifest: what the bundle says about them.
    """

    def __init__(
        self,
        encoder: Encoder | Callable[[], Encoder],
        bridge: Bridge,
        llm: LanguageModel,
        manifest: Manifest,
    ) -> None:
        self.bridge, self.llm, self.manifest = bridge, llm, manifest
        self._encoder, self._closed = encoder, False

    @classmethod
    def open(
        cls,
        bundle: PathLike,
        *,
        encoder: str = AUTO,
        threads: int | None = None,
        context: int = 2048,
        max_context: int | None = None,
        gpu_layers: int | None = None,
    ) -> Self:
        """Open and verify a bundle and load its models; the encoder when it is first needed.

        Args:
            bundle: a `NAME.vqedge` folder.
            encoder: backend of the encoder, as `vqedge doctor` lists them; `auto` is the fastest
                here, measured once.
            threads: CPU threads of both models; all that this process may use by default.
            context: tokens to allocate room for at first; more are when a prompt needs them.
            max_context: tokens that video, question and answer may take together; None for as
                many as the language model was trained with, which is also the most.
            gpu_layers: layers of the language model to keep on the GPU, -1 for all, 0 for the CPU
                alone; None for all where llama.cpp was built for a GPU and finds one.

        Raises:
            BundleError: the bundle is missing, altered or of another version.
            BackendUnavailable: a needed library is missing, or the backend cannot run here.
        """
        opened = open_bundle(Path(bundle))
        manifest = opened.manifest
        require_backend(encoder)
        with ExitStack() as stack:
            bridge = open_bridge(opened.path_of("bridge"), manifest.llm.first_video_word)
            stack.callback(bridge.close)
            llm = open_llama_cpp(
                opened.path_of("llm"),
                threads=threads,
                context=context,
                max_context=max_context,
                gpu_layers=gpu_layers,
                system=manifest.llm.system_prompt,
            )
            stack.pop_all()
        return cls(partial(open_encoder, encoder, opened, threads), bridge, llm, manifest)

    @property
    def encoder(self) -> Encoder:
        """Frames to codes; a `.vqt` has its codes and needs none.

        Raises:
            BackendUnavailable: it cannot run here or on this bundle.
            BundleError: its file cannot be run.
        """
        if callable(self._encoder):
            self._check_open()
            self._encoder = self._encoder()
        return self._encoder

    @property
    def backend(self) -> Backend:
        """What runs where."""
        return self.backend_for(stored=False)

    def backend_for(self, stored: bool) -> Backend:
        """What runs where for a video, or for one that is stored in a `.vqt`."""
        return Backend(NO_ENCODER if stored else self.encoder.name, self.llm.name)

    def encode(
        self,
        video: PathLike,
        budget: Budget | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Video:
        """Decode, sample and encode a video, an image, or a folder of frames; or read a `.vqt`.

        Of a `.vqt` the segment that `start_s` lies in is read, whole.

        Args:
            video: path of the file or folder.
            budget: most tokens to use, or "auto" for as many as the clip needs; the bundle's
                default if not given.
            start_s: start of the span to look at, seconds.
            end_s: end of the span, seconds.

        Raises:
            VideoError: nothing in the file can be decoded, or the span is empty.
            VqtError: a `.vqt` is damaged, of another bundle, or has no one segment for the span.
            ConfigError: the budget is out of range, "auto" where the bundle has a fixed one, or
                one of a `.vqt`, which has its tokens already.
        """
        path = Path(video)
        if is_vqt(path):
            if budget is not None:
                raise ConfigError(f"--budget: {path} has its tokens already; leave the budget out")
            return self._read(path, start_s, end_s)
        codes = self.checked_budget(budget)
        spec = self.manifest.encoder
        stamp = stamp_from_path(path)
        clip = clip_from_path(path, spec.frames, spec.size, start_s, end_s)
        part = (start_s, end_s) != (None, None)
        return replace(self._encoded(clip, codes), source=path, part=part, stamp=stamp)

    def encode_segments(self, vqt: PathLike) -> Iterator[Video]:
        """Every segment of a `.vqt`, read one after another as they are asked for.

        Raises:
            VqtError: the file is damaged or of another bundle.
        """
        began = time.perf_counter()
        for header, segment in segments_from_path(Path(vqt), self.manifest):
            yield self._stored(header, segment, began)
            began = time.perf_counter()

    def save(self, video: Video, path: PathLike, bits: int = 0) -> None:
        """Write an encoded video to a `.vqt`, which this bundle can be asked about instead.

        Args:
            video: what `encode` gave. Its file is read once more, for its sha256.
            path: of the file to write.
            bits: 2 to 8 for a smaller file with each number of a code in so many, for about the
                same answers; 0 for float16 and the very same.

        Raises:
            ConfigError: the bundle's codes are ids, or bits are out of range.
            VideoError: the video's file is gone, or has changed since.
            VqtError: the file cannot be written, or there is one of another kind.
        """
        source = video.source
        origin = origin_from_path(source, video.stamp) if isinstance(source, Path) else source
        window_us = PART_US if video.part else 0
        header = header_for(self.manifest, video.budget, origin, window_us, bits)
        codes = video.tokens.codes
        segment = segment_from_codes(codes, video.start_s, video.duration_s, video.times_s)
        write_stored(Path(path), header, segment)

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
        codes = self.checked_budget(budget)
        tokens, encode_ms = self._tokens(frames_thwc, codes)
        return Video(tokens, 0.0, spec.frames, (), Timings(encode=encode_ms), budget=codes)

    def prefill(self, video: Video, kv: PathLike | None = None) -> Prefix:
        """Read a video ahead of its first question.

        Args:
            video: an encoded video.
            kv: file to keep what was read in (see `vqedge_runtime.kv`): if it fits it is taken
                instead of reading, if it is missing or stale it is written; a warning is logged
                where that is not possible.

        Returns:
            the prefix; `reused` if it was held already or came from the file.
        """
        if kv is None:
            return self.llm.prefill_video(video.rows)
        began = time.perf_counter()
        identity = self._prefix_identity(video)
        state = read_kv(Path(kv), identity)
        if state is not None and self.llm.restore_prefix(video.rows, state):
            held = self.llm.prefill_video(video.rows)
            return replace(held, ms=(time.perf_counter() - began) * 1e3)
        prefix = self.llm.prefill_video(video.rows)
        if not write_kv(Path(kv), identity, self.llm.prefix_state(video.rows)):
            logger.warning(
                "%s: cannot be written, or is another program's; the next ask reads the video anew",
                printable(str(kv)),
            )
        return prefix

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
            return chosen_answer(encoded, scores, spent, self._backend_of(encoded))
        generation = self.llm.ask(encoded.rows, question, options or DecodingOptions())
        return self._answer(encoded, generation, spent)

    def ask_many(
        self, pairs: Sequence[tuple[Video, str]], *, options: DecodingOptions | None = None
    ) -> list[Answer]:
        """Answer many questions together: about one video, about many, in any order.

        Args:
            pairs: encoded videos and the user's words.
            options: how to pick tokens; greedy by default.

        Returns:
            an answer each, as `ask` gives it up to rounding. Times count from the beginning of the
            group of at most fifteen that was read together.

        Raises:
            PromptError: a question is empty or too long for the context.
        """
        prompts = [Prompt(video.rows, question) for video, question in pairs]
        found = self.llm.ask_many(prompts, options or DecodingOptions())
        return [
            self._answer(video, generation, Timings())
            for (video, _), generation in zip(pairs, found, strict=True)
        ]

    def stream(
        self,
        video: Video | PathLike,
        question: str,
        *,
        options: DecodingOptions | None = None,
        history: Sequence[Exchange] = (),
    ) -> AnswerStream:
        """Answer piece by piece; see `ask`.

        Args:
            video: see `ask`.
            question: see `ask`.
            options: see `ask`.
            history: earlier turns about the same video, the oldest first, for a language model
                that was trained on more than one.
        """
        encoded, spent = self._encoded_and_spent(video)
        stream = self.llm.stream(encoded.rows, question, options or DecodingOptions(), history)
        return AnswerStream(stream, lambda result: self._answer(encoded, result, spent))

    def close(self) -> None:
        """Free the models; twice is fine."""
        self._closed = True
        with ExitStack() as stack:
            if not callable(self._encoder):
                stack.callback(self._encoder.close)
            stack.callback(self.bridge.close)
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
        return codes_from_budget(budget, self.manifest.quantizer)

    def _read(self, path: Path, start_s: float | None, end_s: float | None) -> Video:
        """The video that a `.vqt` holds."""
        began = time.perf_counter()
        header, segment = read_stored(path, self.manifest, start_s, end_s)
        return self._stored(header, segment, began)

    def _stored(self, header: Header, segment: Segment, began: float) -> Video:
        self._check_open()
        read_ms = (time.perf_counter() - began) * 1e3
        tokens = self.bridge.tokens(segment.codes)
        encode_ms = (time.perf_counter() - began) * 1e3 - read_ms
        return video_from_segment(
            header, segment, tokens, Timings(decode=read_ms, encode=encode_ms)
        )

    def _encoded(self, clip: Clip, budget: int) -> Video:
        tokens, encode_ms = self._tokens(clip.frames_thwc, budget)
        timings = Timings(clip.decode_ms, clip.preprocess_ms, encode_ms)
        frames = len(clip.frames_thwc)
        return Video(tokens, clip.duration_s, frames, clip.times_s, timings, clip.start_s, budget)

    def _tokens(self, frames: Frames, budget: int) -> tuple[TokenSet, float]:
        self._check_open()
        encoder = self.encoder
        began = time.perf_counter()
        tokens = self.bridge.tokens(encoder.encode(frames, budget))
        return tokens, (time.perf_counter() - began) * 1e3

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable("this VideoQA is closed; open the bundle again")

    def _encoded_and_spent(self, video: Video | PathLike) -> tuple[Video, Timings]:
        """The encoded video and what this call spent on it: nothing, if it came encoded."""
        if isinstance(video, Video):
            return video, Timings()
        encoded = self.encode(video)
        return encoded, encoded.timings

    def _prefix_identity(self, video: Video) -> bytes:
        """Of all that the state of a video's prefix depends on."""
        hashes = {file.role: file.sha256 for file in self.manifest.files}
        return json.dumps([hashes["llm"], self.llm.state_identity, video.rows.key]).encode()

    def _answer(self, video: Video, result: Generation, spent: Timings) -> Answer:
        return generated_answer(video, result, spent, self._backend_of(video))

    def _backend_of(self, video: Video) -> Backend:
        return self.backend_for(isinstance(video.source, Origin))
