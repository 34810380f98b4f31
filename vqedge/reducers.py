"""The names of reducers, and what a configuration calls them. Needs no torch.

`vqedge.model.reducers` makes them; docs/reducers.md describes them.
"""

from __future__ import annotations

from typing import Final

from vqedge.choices import chosen
from vqedge.errors import ConfigError, UsageError

PREFIX: Final = "reducer:"
TRAINING_FREE: Final = (
    "uniform-pool",
    "tpool",
    "tsample",
    "spool",
    "gridpool",
    "uniform-prune",
    "random-prune",
    "prumerge",
    "prumerge+",
    "tome",
    "vtm",
    "vtm-centre",
    "vtm-motion",
    "kmedoids",
    "dpc-spatial",
    "scissor",
    "window-merge",
)
TRAINABLE: Final = ("group-queries", "resampler", "vtm-saliency", "query-window")
"""Those with weights of their own, which are trained with the bridge."""
PER_QUESTION: Final = frozenset({"query-window"})
"""Those whose tokens follow the question: nothing of a clip is kept for the next one, and all have
one budget, the model's default."""
ATTENTION: Final = frozenset({"prumerge", "prumerge+", "window-merge"})
"""Those that read what the CLS token attends to."""
ALL_PAIRS: Final = frozenset(
    {
        "prumerge",
        "prumerge+",
        "tome",
        "vtm-motion",
        "kmedoids",
        "dpc-spatial",
        "window-merge",
        "vtm-saliency",
    }
)
"""Those that compare all pairs of a clip's patches, in several tables of N x N float32 at once."""
MOST_IN_PAIRS: Final = 8192
"""The most patches of a clip that they take: 0.3 GB a table then, and 0.4 to 1.4 GB in all."""
_SHORT: Final = {"grid": "uniform-pool", "random": "random-prune"}  # kinds with a name of their own


def reducer_of(kind: str) -> str | None:
    """The reducer that a `quantizer.kind` names; None for k-means and the learned codebook."""
    if kind.startswith(PREFIX):
        return kind.removeprefix(PREFIX)
    return _SHORT.get(kind)


def reads_attention(kind: str) -> bool:
    """Does a quantizer of this kind read the CLS token's attention beside the features?"""
    return reducer_of(kind) in ATTENTION


def has_weights(kind: str) -> bool:
    """Is a quantizer of this kind trained, so that no codes of it can be kept for training?"""
    return reducer_of(kind) in TRAINABLE


def follows_question(kind: str) -> bool:
    """Does a quantizer of this kind make a clip's tokens anew for every question?"""
    return reducer_of(kind) in PER_QUESTION


def checked_kind(kind: str) -> str:
    """The kind, if there is such a quantizer.

    Raises:
        ValueError: there is none.
    """
    name = reducer_of(kind)
    known = ("kmeans", "codebook", *_SHORT)
    reducers = (*TRAINING_FREE, *TRAINABLE)
    if kind in known or (kind.startswith(PREFIX) and name in reducers):
        return kind
    choices = ", ".join((*known, *(f"{PREFIX}{name}" for name in reducers)))
    raise ValueError(f"no quantizer {kind!r}; choose one of {choices}")


def training_free_kind(name: str) -> str:
    """The kind of quantizer that a reducer without weights is.

    Raises:
        UsageError: it has weights, or is not known.
    """
    if name in TRAINABLE:
        raise UsageError(
            f"--reducer {name}: has weights of its own, which no published model brings; train "
            f"with quantizer.kind {PREFIX}{name} (docs/reducers.md), or choose of "
            f"{', '.join(TRAINING_FREE)}"
        )
    return f"{PREFIX}{chosen('--reducer', name, TRAINING_FREE)}"


def has_room(name: str, patches: int) -> bool:
    """Can a reducer take clips of so many patches?"""
    return name not in ALL_PAIRS or patches <= MOST_IN_PAIRS


def require_room(name: str, patches: int) -> None:
    """See that a reducer can take clips of so many patches.

    Raises:
        ConfigError: it compares all pairs of them, and they are too many.
    """
    if not has_room(name, patches):
        raise ConfigError(
            f"{PREFIX}{name}: compares all pairs of a clip's {patches:,} patches, "
            f"{4 * patches**2 / 1e9:.1f} GB a table, and takes {MOST_IN_PAIRS:,} at most; use "
            f"fewer frames, or {PREFIX}vtm, {PREFIX}scissor, {PREFIX}uniform-pool or kmeans"
        )
