"""`vqedge encode --as`: a video as the piece of a prompt that any runtime of the GGUF reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from vqedge.bundle import Bundle, bundle_or_default, open_bundle
from vqedge.choices import chosen
from vqedge.commands.encode import EncodeOptions
from vqedge.commands.output import json_result, result, say
from vqedge.commands.pipe import given_video
from vqedge.commands.question import check_question
from vqedge.errors import UsageError
from vqedge_runtime import Video
from vqedge_runtime.bridge import open_bridge
from vqedge_runtime.encoders import open_encoder
from vqedge_runtime.encoding import EncodingSession
from vqedge_runtime.video_words import prompt_piece, vocabulary_of_bundle

TEXT, IDS = "text", "ids"


def run_words(
    videos: Sequence[Path],
    form: str | None,
    question: str | None = None,
    out: str | None = None,
    bundle: Path | None = None,
    *,
    options: EncodeOptions | None = None,
    as_json: bool = False,
) -> None:
    """Print a video's words.

    Args:
        videos: one, or a `.vqt`; `options` say which of its segments; `-` for standard input.
        form: `text` or `ids`.
        question: print the ids of the whole prompt that asks this; it is never read as words of a
            video, whatever it spells.
        out: None: words are printed.
        bundle: whose videos are words.
        options: how the video is encoded.
        as_json: print both forms in one document.

    Raises:
        UsageError: flags that do not go together, a text that is none of those they take, or an
            empty question.
        ConfigError: the bundle's videos are no words.
    """
    settings = options or EncodeOptions()
    _check_flags(videos, form, question, out, settings)
    with given_video(videos[0]) as given:
        opened = open_bundle(bundle_or_default(bundle))
        vocabulary_of_bundle(opened.manifest)
        tokens = _encoded(given.path, opened, settings).tokens
    piece = prompt_piece(opened.manifest, tokens)
    ids = list(piece.ids) if question is None else _prompt(opened, piece.ids, question)
    if as_json:
        json_result({"text": piece.text, "ids": ids, "codes": tokens.codes.count})
    else:
        result(piece.text if form == TEXT else " ".join(map(str, ids)))


def _check_flags(
    videos: Sequence[Path],
    form: str | None,
    question: str | None,
    out: str | None,
    options: EncodeOptions,
) -> None:
    if form is None:
        raise UsageError(f"--question: give --as {IDS} too")
    if chosen("--as", form, (TEXT, IDS)) == TEXT and question is not None:
        raise UsageError(
            f"--question: in text it could spell words of a video or end its turn; use --as {IDS}"
        )
    if question is not None:
        check_question(question)
    given = {
        f"{len(videos)} videos": len(videos) > 1,
        "-o": out is not None,
        "--segment": options.segment_s is not None,
        "--bits": bool(options.bits),
        "--jobs": options.jobs != EncodeOptions.jobs,
        "--overwrite": options.overwrite,
    }
    if odd := [name for name, there in given.items() if there]:
        raise UsageError(
            f"--as {form}: prints one video, whole; {', '.join(odd)} does not go with it"
        )


def _encoded(video: Path, bundle: Bundle, options: EncodeOptions) -> Video:
    """The video, or a stored one's segment; what encoded it is told on stderr."""
    runs_on = options.runs_on
    opens = partial(open_encoder, runs_on.backend, bundle, runs_on.threads)
    bridge = open_bridge(bundle.path_of("bridge"), bundle.manifest.llm.first_video_word)
    with EncodingSession(opens, bridge, bundle.manifest) as session:
        encoded = session.encode(video, options.budget, *options.span)
        if isinstance(encoded.source, Path):
            say(f"encoder: {session.encoder.name}")
        return encoded


def _prompt(bundle: Bundle, video: tuple[int, ...], question: str) -> list[int]:
    """Ids of template, video and question."""
    from vqedge_runtime.llm import open_llama_cpp

    record, path = bundle.manifest.llm, bundle.path_of("llm")
    llm = open_llama_cpp(path, record=record, context=1, system=record.system_prompt)
    with closing(llm):
        before, after = llm.prompt_ids(question)
    return [*before, *video, *after]
