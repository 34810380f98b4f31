"""A language model that never waits for a text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vqedge_runtime.llm import FakeLanguageModel, Generation


class Timed(FakeLanguageModel):
    """One that takes a millisecond and always answers."""

    def ask(self, *arguments: Any) -> Generation:
        self.enqueue("A red circle.")
        return replace(super().ask(*arguments), first_token_ms=1.0, total_ms=2.0)
