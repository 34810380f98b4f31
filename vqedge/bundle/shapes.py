"""Shapes of tensors with free dimensions: texts in a manifest and a graph, -1 in libraries."""

from __future__ import annotations

from collections.abc import Sequence


def may_be(shape: Sequence[int | str], wanted: Sequence[int]) -> bool:
    """Whether a tensor of a shape takes or gives one of `wanted`, all of whose lengths are set."""
    return len(shape) == len(wanted) and all(
        isinstance(own, str) or own in (-1, length)
        for own, length in zip(shape, wanted, strict=True)
    )
