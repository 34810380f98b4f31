"""The names of reducers, and what a configuration calls them. Needs no torch.

`vqedge.model.reducers` makes them; docs/reducers.md describes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vqedge.choices import chosen
from vqedge.errors import ConfigError, UsageError

PREFIX: Final = "reducer:"


@dataclass(frozen=True)
class Kind:
    """What is known of a reducer before it is made.

    Attributes:
        trained: it has weights of its own, which are trained with the bridge.
        per_question: its tokens follow the question: nothing of a clip is kept for the next one,
            and all have one budget, the model's default.
        reads_attention: it reads what the CLS token attends to.
        all_pairs: it compares all pairs of a clip's patches, in several tables of N x N float32 at
            once.
        version: of its tokens: one more with every change that gives a clip others.
    """

    trained: bool = False
    per_question: bool = False
    reads_attention: bool = False
    all_pairs: bool = False
    version: int = 1


KMEANS: Final = Kind()
KINDS: Final = {
    "uniform-pool": Kind(),
    "tpool": Kind(),
    "tsample": Kind(),
    "spool": Kind(),
    "gridpool": Kind(),
    "uniform-prune": Kind(),
    "random-prune": Kind(),
    "prumerge": Kind(reads_attention=True, all_pairs=True, version=2),
    "prumerge+": Kind(reads_attention=True, all_pairs=True, version=2),
    "tome": Kind(all_pairs=True),
    "vtm": Kind(),
    "vtm-centre": Kind(),
    "vtm-motion": Kind(all_pairs=True),
    "kmedoids": Kind(all_pairs=True, version=2),
    "dpc-spatial": Kind(all_pairs=True),
    "scissor": Kind(),
    "window-merge": Kind(reads_attention=True, all_pairs=True),
    "group-queries": Kind(trained=True),
    "resampler": Kind(trained=True),
    "vtm-saliency": Kind(trained=True, all_pairs=True),
    "query-window": Kind(trained=True, per_question=True),
}
TRAINING_FREE: Final = tuple(name for name, kind in KINDS.items() if not kind.trained)
TRAINABLE: Final = tuple(name for name, kind in KINDS.items() if kind.trained)
MOST_IN_PAIRS: Final = 8192  # of those with `all_pairs`
"""The most patches of a clip that they take: 0.3 GB a table then, and 0.4 to 1.4 GB in all."""


def reducer_of(kind: str) -> str | None:
    """The reducer that a `quantizer.kind` names; None for k-means and the learned codebook."""
    return kind.removeprefix(PREFIX) if kind.startswith(PREFIX) else None


def reads_attention(kind: str) -> bool:
    """Does a quantizer of this kind read the CLS token's attention beside the features?"""
    return _known(reducer_of(kind)).reads_attention


def has_weights(kind: str) -> bool:
    """Is a quantizer of this kind trained, so that no codes of it can be kept for training?"""
    return _known(reducer_of(kind)).trained


def follows_question(kind: str) -> bool:
    """Does a quantizer of this kind make a clip's tokens anew for every question?"""
    return _known(reducer_of(kind)).per_question


def version_of(kind: str) -> int:
    """Version of the tokens that a quantizer of this kind makes; a new one outdates caches."""
    return _known(reducer_of(kind)).version


def _known(name: str | None) -> Kind:
    """What is known of a reducer; `KMEANS` for any other name."""
    return KINDS.get(name or "", KMEANS)


def checked_kind(kind: str) -> str:
    """The kind, if there is such a quantizer.

    Raises:
        ValueError: there is none.
    """
    name = reducer_of(kind)
    known = ("kmeans", "codebook")
    if kind in known or (kind.startswith(PREFIX) and name in KINDS):
        return kind
    choices = ", ".join((*known, *(f"{PREFIX}{name}" for name in KINDS)))
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
    return not _known(name).all_pairs or patches <= MOST_IN_PAIRS


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
