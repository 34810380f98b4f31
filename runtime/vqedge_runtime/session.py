"""`VideoQA`: open a bundle, encode a video once, ask many questions about it.

with VideoQA.open("tiny.vqedge") as qa:
    video = qa.encode("clip.mp4")
    print(qa.ask(video, "What color is the circle?").text)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from typing_extensions import Self

from vqedge.bundle import Manifest, bundle_or_default, open_bundle
from vqedge.cores import check_threads
from vqedge.errors import ConfigError
from vqedge_runtime.answers import (
    NO_ENCODER,
    Answer,
    AnswerStream,
    Backend,
    Timings,
    Video,
    chosen_answer,
    generated_answer,
)
from vqedge_runtime.bridge import Bridge, open_bridge
from vqedge_runtime.encoders import AUTO, open_encoder, opener_ahead, require_backend
from vqedge_runtime.encoders.protocol import Encoder
from vqedge_runtime.encoding import EncodingSession, PathLike
from vqedge_runtime.evidence import Evidence, find_evidence
from vqedge_runtime.kv import read_kv, write_kv
from vqedge_runtime.llm import (
    DecodingOptions,
    Exchange,
    Generation,
    LanguageModel,
    Prefix,
    Prompt,
    check_choices,
    open_llama_cpp,
    start_llama_cpp,
)
from vqedge_runtime.llm.prefixes import MOST_BYTES
from vqedge_runtime.opening import Opening
from vqedge_runtime.vqt import PER_QUESTION


class VideoQA(EncodingSession):
    """Answers questions about videos.

    Owns an encoder, a bridge and a language model; close it, or use `with`.

    Threads may share it and take turns. The next question or video that the language model reads,
    of any of them, ends a stream.

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
        super().__init__(encoder, bridge, manifest)
        self.llm = llm

    @classmethod
    def open(
        cls,
        bundle: PathLike | None = None,
        *,
        encoder: str = AUTO,
        encoder_ahead: bool = False,
        threads: int | None = None,
        context: int = 2048,
        max_context: int | None = None,
        gpu_layers: int | None = None,
    ) -> Self:
        """Open and verify a bundle and load its models; the encoder as said below.

        Args:
            bundle: a `NAME.vqedge` folder; None for `$VQEDGE_BUNDLE`, `tiny.vqedge` or
                `build/tiny.vqedge`, as commands take it.
            encoder: backend of the encoder, as `vqedge doctor` lists them; `auto` is the fastest
                here, measured once.
            encoder_ahead: load the encoder from now on, beside the language model and the first
                video, for which `.vqt` files have no use; else when it is first needed, and in any
                case where backends have to be measured first or may take long.
            threads: CPU threads of both models; all that this process may use by default.
            context: tokens to allocate room for at first; more are when a prompt needs them.
            max_context: tokens that video, question and answer may take together; None for as
                many as the language model was trained with, which is also the most.
            gpu_layers: layers of the language model to keep on the GPU, -1 for all, 0 for the CPU
                alone; None for all where llama.cpp was built for a GPU and finds one.

        Raises:
            BundleError: the bundle is missing, altered or of another version.
            BackendUnavailable: a needed library is missing, or the backend cannot run here.
            UsageError: there is no such backend.
            ConfigError: a number is out of range.
            PromptError: the language model's chat template cannot be used.
        """
        check_threads(threads)
        opened = open_bundle(bundle_or_default(None if bundle is None else Path(bundle)))
        manifest = opened.manifest
        require_backend(encoder)
        opens: Callable[[], Encoder] = partial(open_encoder, encoder, opened, threads)
        with ExitStack() as stack:
            if encoder_ahead:
                start_llama_cpp()
                if ahead := opener_ahead(encoder, opened, threads):
                    opens = opening = Opening(ahead, opens)
                    stack.callback(opening.close)
            bridge = open_bridge(opened.path_of("bridge"), manifest.llm.first_video_word)
            stack.callback(bridge.close)
            llm = open_llama_cpp(
                opened.path_of("llm"),
                record=manifest.llm,
                threads=threads,
                context=context,
                max_context=max_context,
                gpu_layers=gpu_layers,
                system=manifest.llm.system_prompt,
                most_aside_bytes=0 if manifest.quantizer.per_question else MOST_BYTES,
            )
            stack.pop_all()
        return cls(opens, bridge, llm, manifest)

    @property
    def backend(self) -> Backend:
        """What runs where; opens the encoder, and raises as `encoder` does."""
        return self.backend_for(stored=False)

    def backend_for(self, stored: bool) -> Backend:
        """What runs where for a video, or for one that is stored in a `.vqt`; see `backend`."""
        self._check_open()
        return Backend(NO_ENCODER if stored else self.encoder.name, self.llm.name)

    def prefill(self, video: Video, kv: PathLike | None = None) -> Prefix:
        """Read a video ahead of its first question. Ends a stream.

        Args:
            video: an encoded video.
            kv: file to keep what was read in (see `vqedge_runtime.kv`): if it fits it is taken
                instead of reading, if it is missing or stale it is written; a warning is logged
                where that is not possible.

        Returns:
            the prefix; `reused` if it was held already or came from the file.

        Raises:
            ConfigError: the bundle's tokens follow the question.
            BackendUnavailable: the language model failed, or this is closed.
            BundleError: the video's rows are not as wide as the model's.
            PromptError: more rows than the model can read.
            VqtError: the video was made with another bundle.
        """
        self._check_open()
        self._check_ours(video)
        if video.frames_thwc is not None:
            raise ConfigError(PER_QUESTION)
        if kv is None:
            return self.llm.prefill_video(video.rows)
        began = time.perf_counter()
        identity = self._prefix_identity(video)
        state = read_kv(Path(kv), identity)
        if state is not None and self.llm.restore_prefix(video.rows, state):
            held = self.llm.prefill_video(video.rows)
            return replace(held, ms=(time.perf_counter() - began) * 1e3)
        prefix = self.llm.prefill_video(video.rows)
        write_kv(Path(kv), identity, self.llm.prefix_state(video.rows))
        return prefix

    def asked(self, video: Video, question: str) -> Video:
        """The video with the tokens that it has for a question; itself where they follow none.

        Raises:
            BackendUnavailable: encoder or language model cannot run here, failed or are closed.
            BundleError: the language model's file holds no input embeddings, or the encoder failed.
            PromptError: the question is empty.
            VqtError: the video was made with another bundle.
        """
        self._check_ours(video)
        if video.frames_thwc is None:
            return video
        text = self.llm.question_embedding(question)
        tokens, encode_ms = self._tokens(video.frames_thwc, video.budget, text)
        timings = replace(video.timings, encode=encode_ms)
        return replace(video, tokens=tokens, timings=timings, encoder=self.encoder.name)

    def ask(
        self,
        video: Video | PathLike,
        question: str,
        *,
        choices: Iterable[str] | None = None,
        options: DecodingOptions | None = None,
    ) -> Answer:
        """Answer a question.

        Args:
            video: an encoded video, or a path to encode first.
            question: the user's words.
            choices: if given, score these answers, all different, instead of generating one.
            options: how to pick the tokens of a generated answer; greedy by default.

        Raises:
            PromptError: the question is empty or too long for the context, or the choices are none
                or one text, one is empty or there twice.
            ConfigError: choices and options are given, or options are no `DecodingOptions`.
            VideoError, VqtError, BundleError: see `encode`; the second also where the video was
                made with another bundle, the last where the rows are not as wide as the language
                model's.
            BackendUnavailable: a model cannot run here or failed, or this is closed.
        """
        self._check_open()
        choices, decoding = _listed(choices, options), _decoding(options)
        encoded, spent = self._encoded_and_spent(video, question)
        if choices is not None:
            scores = self.llm.score_choices(encoded.rows, question, choices)
            return chosen_answer(encoded, scores, spent, self._backend_of(encoded))
        generation = self.llm.ask(encoded.rows, question, decoding)
        return self._answer(encoded, generation, spent)

    def ask_many(
        self,
        pairs: Iterable[tuple[Video | PathLike, str]],
        *,
        choices: Iterable[str] | None = None,
        options: DecodingOptions | None = None,
    ) -> list[Answer]:
        """Answer many questions together: about one video, about many, in any order.

        Ends a stream, as every question does.

        Args:
            pairs: encoded videos, or paths, each of which is encoded once, and the user's words.
            choices: see `ask`; they are scored for one question after another.
            options: how to pick tokens; greedy by default.

        Returns:
            an answer each, as `ask` gives it up to rounding. Times count from the beginning of the
            group of at most fifteen that was read together, of choices from that of the question;
            encoding is not in them.

        Raises:
            VqedgeError: as `ask` does.
        """
        self._check_open()
        choices, decoding, pairs = _listed(choices, options), _decoding(options), list(pairs)
        given = dict.fromkeys(video for video, _ in pairs)
        encoded = {v: v if isinstance(v, Video) else self.encode(v) for v in given}
        if choices is not None:
            return [self.ask(encoded[v], question, choices=choices) for v, question in pairs]
        videos = [self.asked(encoded[video], question) for video, question in pairs]
        prompts = [Prompt(v.rows, question) for v, (_, question) in zip(videos, pairs, strict=True)]
        found = self.llm.ask_many(prompts, decoding)
        return [
            self._answer(video, generation, Timings())
            for video, generation in zip(videos, found, strict=True)
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

        Returns:
            the stream; once the language model reads something else, it raises StreamEnded.

        Raises:
            VqedgeError: as `ask` does, now; PromptError also where the chat template has no second
                turn.
        """
        self._check_open()
        decoding = _decoding(options)
        encoded, spent = self._encoded_and_spent(video, question)
        stream = self.llm.stream(encoded.rows, question, decoding, history)
        return AnswerStream(stream, lambda result: self._answer(encoded, result, spent))

    def evidence(self, video: Video | PathLike, question: str, answer: str) -> Evidence:
        """Which codes an answer hangs on, and when they are to be seen; up to 49 more prompts.

        Ends a stream.

        Args:
            video: see `ask`.
            question: see `ask`.
            answer: the words to explain, the model's or others.

        Raises:
            ConfigError: no row of the bundle's is one code's.
            VqedgeError: as `ask` does; PromptError also where the answer is empty.
        """
        self._check_open()
        encoded, _ = self._encoded_and_spent(video, question)
        return find_evidence(self.llm, encoded, question, answer)

    def close(self) -> None:
        """Free the models when no thread is at them; twice is fine."""
        with ExitStack() as stack:
            stack.callback(self.llm.close)
            stack.callback(super().close)  # the first to go: it says that the bundle is closed

    def _encoded_and_spent(self, video: Video | PathLike, question: str) -> tuple[Video, Timings]:
        """The video as it is for a question, and what this call spent on it.

        Nothing, if it came encoded and its tokens do not follow the question.
        """
        if isinstance(video, Video):
            asked = self.asked(video, question)
            return asked, Timings() if asked is video else Timings(encode=asked.timings.encode)
        encoded = self.asked(self.encode(video), question)
        return encoded, encoded.timings

    def _prefix_identity(self, video: Video) -> bytes:
        """All that the state of a video's prefix depends on."""
        hashes = {file.role: file.sha256 for file in self.manifest.files}
        return json.dumps([hashes["llm"], self.llm.state_identity, video.rows.key]).encode()

    def _answer(self, video: Video, result: Generation, spent: Timings) -> Answer:
        return generated_answer(video, result, spent, self._backend_of(video))

    def _backend_of(self, video: Video) -> Backend:
        """What encoded it, here or in another session, and what answers here."""
        return Backend(video.encoder, self.llm.name)


def _listed(choices: Iterable[str] | None, options: DecodingOptions | None) -> Sequence[str] | None:
    """The choices that are given, if they can be asked for."""
    if choices is None:
        return None
    choices = choices if isinstance(choices, str) else list(choices)
    check_choices(choices)
    if options is not None:
        raise ConfigError("options are for an answer that is generated; choices need none")
    return choices


def _decoding(options: DecodingOptions | None) -> DecodingOptions:
    """How to pick tokens: as given, or greedily."""
    if options is None:
        return DecodingOptions()
    if not isinstance(options, DecodingOptions):
        raise ConfigError(f"options {options!r}: give DecodingOptions(max_tokens=...) of vqedge")
    return options
