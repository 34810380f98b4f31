"""Prefixes of videos that make room for another one, in memory: asked again, they are not read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MOST_BYTES = 128 << 20


class Prefixes:
    """States by name; those kept longest are let go first.

    Args:
        most_bytes: of all states together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.size_bytes = most_bytes, 0
        self._states: OrderedDict[Hashable, bytes] = OrderedDict()

    def keep(self, name: Hashable, state: bytes) -> None:
        """Keep a state, in place of one of this name; one that is too large is not kept."""
        self.take(name)
        if len(state) > self.most_bytes:
            return
        self._states[name] = state
        self.size_bytes += len(state)
        while self.size_bytes > self.most_bytes:
            self.take(next(iter(self._states)))

    def take(self, name: Hashable) -> bytes | None:
        """A state, which is kept no longer; None if there is none of this name."""
        state = self._states.pop(name, None)
        self.size_bytes -= len(state or b"")
        return state

    def clear(self) -> None:
        """Let go of all."""
        self._states.clear()
        self.size_bytes = 0
