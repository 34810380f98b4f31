"""The device runtime: decode, encode, ask. Never imports torch, transformers or onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vqedge.silence  # noqa: F401 - before a library is imported

if TYPE_CHECKING:
    from vqedge.budget import Budget
    from vqedge.errors import VqedgeError
    from vqedge_runtime.answers import Answer, AnswerStream, Backend, Timings, Video
    from vqedge_runtime.evidence import CodeEvidence, Evidence
    from vqedge_runtime.llm import DecodingOptions, Exchange, Prefix
    from vqedge_runtime.session import VideoQA
    from vqedge_runtime.tokens import TokenSet

__all__ = [
    "Answer",
    "AnswerStream",
    "Backend",
    "Budget",
    "CodeEvidence",
    "DecodingOptions",
    "Evidence",
    "Exchange",
    "Prefix",
    "Timings",
    "TokenSet",
    "Video",
    "VideoQA",
    "VqedgeError",
]

_ANSWERS = ("Answer", "AnswerStream", "Backend", "Timings", "Video")
_HOMES = {
    **dict.fromkeys(_ANSWERS, "vqedge_runtime.answers"),
    **dict.fromkeys(("DecodingOptions", "Exchange", "Prefix"), "vqedge_runtime.llm"),
    **dict.fromkeys(("CodeEvidence", "Evidence"), "vqedge_runtime.evidence"),
    "Budget": "vqedge.budget",
    "TokenSet": "vqedge_runtime.tokens",
    "VideoQA": "vqedge_runtime.session",
    "VqedgeError": "vqedge.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Public names too, so that they can be completed before their first use."""
    return sorted({*globals(), *__all__})
