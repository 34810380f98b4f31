"""The language model: its contract (`protocol`), llama.cpp (`generate`), a stand-in (`fake`).

Importing this loads no llama.cpp; `open_llama_cpp` does.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from vqedge.bundle import LlmRecord
from vqedge.prompt import SYSTEM
from vqedge_runtime.llm.fake import FakeLanguageModel
from vqedge_runtime.llm.prefixes import MOST_BYTES
from vqedge_runtime.llm.protocol import (
    ChoiceScores,
    DecodingOptions,
    Exchange,
    Generation,
    LanguageModel,
    Prefix,
    Prompt,
    TextStream,
    VideoRows,
    check_choices,
)

if TYPE_CHECKING:
    from vqedge_runtime.llm.generate import LlamaCpp

__all__ = [
    "ChoiceScores",
    "DecodingOptions",
    "Exchange",
    "FakeLanguageModel",
    "Generation",
    "LanguageModel",
    "Prefix",
    "Prompt",
    "TextStream",
    "VideoRows",
    "check_choices",
    "open_llama_cpp",
]


def start_llama_cpp() -> None:
    """Load llama.cpp, which sets variables of the environment, before other threads read them.

    Raises:
        BackendUnavailable: llama-cpp-python is missing or cannot run here.
    """
    from vqedge_runtime.llm.native import backend

    backend()


def open_llama_cpp(
    path: str | PathLike[str],
    *,
    record: LlmRecord | None = None,
    threads: int | None = None,
    context: int = 2048,
    max_context: int | None = None,
    gpu_layers: int | None = None,
    system: str = SYSTEM,
    most_aside_bytes: int = MOST_BYTES,
) -> LlamaCpp:
    """Open a GGUF file whose header `check_gguf` lets pass; see `generate.LlamaCpp.open`.

    `record` is what the manifest says of it, if it is a bundle's.

    Raises:
        BackendUnavailable: llama-cpp-python is missing or cannot run here.
        BundleError: the file is missing, cannot be read, or is another than the manifest's.
        ConfigError: a number is out of range.
        PromptError: the file's chat template cannot be used.
    """
    start_llama_cpp()
    from vqedge_runtime.llm.generate import LlamaCpp
    from vqedge_runtime.llm.gguf_facts import check_gguf

    check_gguf(Path(path), record)
    return LlamaCpp.open(
        path,
        threads=threads,
        context=context,
        max_context=max_context,
        gpu_layers=gpu_layers,
        system=system,
        most_aside_bytes=most_aside_bytes,
    )
