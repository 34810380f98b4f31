"""Video question answering on the edge: a few discrete tokens for a small quantised LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vqedge.silence  # noqa: F401 - before a library is imported

if TYPE_CHECKING:
    from vqedge_runtime import DecodingOptions, VideoQA, VqedgeError

__version__ = "0.1.0"
__all__ = ["DecodingOptions", "VideoQA", "VqedgeError", "__version__"]


def __getattr__(name: str) -> Any:
    """`from vqedge import VideoQA` loads the runtime on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module("vqedge_runtime"), name)
    return value


def __dir__() -> list[str]:
    """Public names too, so that they can be completed before their first use."""
    return sorted({*globals(), *__all__})
