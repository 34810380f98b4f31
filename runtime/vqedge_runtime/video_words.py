"""A video as a piece of a prompt, for any runtime that reads the bundle's GGUF.

The bundle must be one whose videos are words: its GGUF holds a token for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from vqedge.bundle import Manifest
from vqedge.errors import BundleError, ConfigError
from vqedge.video_words import VideoVocabulary
from vqedge_runtime.tokens import TokenSet


@dataclass(frozen=True)
class PromptPiece:
    """The part of a prompt that stands for a video.

    Attributes:
        text: control tokens one after the other, to be tokenised with special tokens parsed.
        ids: the same as ids of the bundle's GGUF.
    """

    text: str
    ids: tuple[int, ...]


def prompt_piece(manifest: Manifest, tokens: TokenSet) -> PromptPiece:
    """Spell an encoded video.

    Raises:
        ConfigError: the bundle's rows are made for each clip: they are no words.
        BundleError: its GGUF holds other words than its encoder tells.
    """
    words = vocabulary_of_bundle(manifest)
    if tokens.words is None or tokens.token_ids is None:
        raise BundleError("bridge.onnx tells no words, though the GGUF holds some; export again")
    return PromptPiece(words.text(tokens.words.tolist()), tuple(tokens.token_ids.tolist()))


def vocabulary_of_bundle(manifest: Manifest) -> VideoVocabulary:
    """The words that a bundle's videos are told in.

    Raises:
        BundleError: its GGUF and its encoder know different words.
        ConfigError: its videos are rows, not words.
    """
    codebook = manifest.quantizer.codebook
    if manifest.llm.video_words is None or codebook is None:
        raise ConfigError(
            "this bundle's videos are rows, not words of its GGUF's vocabulary; export a "
            "checkpoint trained with attention.hash tokens: recipes/tiny-words.yaml"
        )
    words = VideoVocabulary(codebook.levels, codebook.entries, manifest.encoder.frames)
    if len(words) != manifest.llm.video_words:
        raise BundleError(
            f"the GGUF holds {manifest.llm.video_words} video words, the encoder tells "
            f"{len(words)}; export again"
        )
    return words
