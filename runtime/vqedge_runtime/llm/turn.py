"""One answer under way: what it costs, how its next token is picked."""

from __future__ import annotations

import codecs
import time
from dataclasses import dataclass, field

import numpy as np

from vqedge_runtime.llm.handles import Context, Model, Sampler
from vqedge_runtime.llm.protocol import Generation, Prefix, Rows


@dataclass
class Turn:
    """Where the context stands, what has been said and when.

    Attributes:
        prefix: template and video.
        prompt_tokens: positions before the answer.
        question_ms: time for the question.
        started: when the question came, of `time.perf_counter`.
        unread: the last token generated, not in the context yet.
    """

    prefix: Prefix
    prompt_tokens: int
    question_ms: float
    started: float
    unread: int | None = None
    text: str = ""
    generated: int = 0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    stopped: bool = False
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    @property
    def end(self) -> int:
        """Position of the unread token."""
        return self.prompt_tokens + self.generated - 1

    def next_token(
        self, model: Model, context: Context, sampler: Sampler, place: int = -1
    ) -> bytes | None:
        """Pick one more token: its bytes, None at the end of the turn."""
        token = sampler.sample(context, place)
        if not self.generated and model.is_end(token):
            token = _likeliest_word(model, context.logits_at(place))
        self.total_ms = ms_since(self.started)
        self.first_token_ms = self.first_token_ms or self.total_ms
        if model.is_end(token):
            self.stopped = True
            return None
        self.unread = token
        self.generated += 1
        return model.bytes_from_token(token)

    def say(self, data: bytes | None) -> str:
        """Add a token's bytes, None after the last one, to the text.

        Returns:
            the characters they complete, without space before the first word.
        """
        piece = self._utf8.decode(data or b"", final=data is None)
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        return piece

    def generation(self) -> Generation:
        """The answer so far."""
        return Generation(
            text=self.text,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated,
            prefix_ms=self.prefix.ms,
            question_ms=self.question_ms,
            first_token_ms=self.first_token_ms,
            total_ms=self.total_ms,
            reused_prefix=self.prefix.reused,
            stopped=self.stopped,
        )


def ms_since(started: float) -> float:
    """Milliseconds since a reading of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e3


def _likeliest_word(model: Model, logits: Rows) -> int:
    """The best token that does not end the turn: an answer is never empty."""
    order = np.argsort(-logits, kind="stable")
    return next(int(token) for token in order if not model.is_end(int(token)))
