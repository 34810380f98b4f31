"""The device runtime: decode, encode, ask. Never imports torch, transformers or onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqedge_runtime.answers import Answer, Backend, Timings, Video
    from vqedge_runtime.llm import DecodingOptions
    from vqedge_runtime.session import VideoQA
    from vqedge_runtime.tokens import TokenSet

__all__ = ["Answer", "Backend", "DecodingOptions", "Timings", "TokenSet", "Video", "VideoQA"]

_HOMES = {
    **dict.fromkeys(("Answer", "Backend", "Timings", "Video"), "vqedge_runtime.answers"),
    "DecodingOptions": "vqedge_runtime.llm",
    "TokenSet": "vqedge_runtime.tokens",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "vqedge_runtime.session")), name)
