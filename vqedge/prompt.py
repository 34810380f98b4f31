"""The prompt, the same in training and on the device.

One user turn holds the video's rows, a line break and the question. The chat template is the
model's own; it is rendered around two marks and cut there, so that rows go in as embeddings and the
user's words are tokenised as plain text: a question that spells `<|im_end|>` stays a question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vqedge.errors import PromptError

SYSTEM = "Answer the question about the video."
_TOLD = 60  # characters of a question, in a message about it
_MARK, _ANSWER, _NEXT = "[[vqedge-video]]", "[[vqedge-answer]]", "[[vqedge-next]]"

Message = dict[str, str]


@dataclass(frozen=True)
class PromptParts:
    """Template text around the video and the question. Tokenise with special tokens parsed."""

    before_video: str
    after_question: str


def prompt_parts(render: Callable[[list[Message]], str], system: str = SYSTEM) -> PromptParts:
    """Cut the model's chat template where video and question go.

    Args:
        render: turns messages into text, with the opening of the assistant's turn at the end.
        system: the system message.

    Raises:
        PromptError: the template drops or repeats the user's message.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": _MARK}]
    pieces = render(messages).split(_MARK)
    if len(pieces) != 2:
        raise PromptError("the model's chat template does not hold the user's message exactly once")
    return PromptParts(*pieces)


def text_between_turns(render: Callable[[list[Message]], str], system: str = SYSTEM) -> str | None:
    """Template text from the end of an answer to the next question's first word.

    None where the template tells a second turn otherwise than the first. Arguments as in
    `prompt_parts`.
    """
    parts = prompt_parts(render, system)
    talk = [
        {"role": "system", "content": system},
        {"role": "user", "content": _MARK},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _NEXT},
    ]
    first = f"{parts.before_video}{_MARK}{parts.after_question}{_ANSWER}"
    text, last = render(talk), f"{_NEXT}{parts.after_question}"
    as_expected = text.startswith(first) and text.endswith(last)
    return text.removeprefix(first).removesuffix(last) if as_expected else None


def question_text(question: str, *, after_video: bool = True) -> str:
    """The user's words, after the video or in a later turn.

    Tokenise *without* parsing special tokens.

    Raises:
        PromptError: the question is empty.
    """
    words = " ".join(question.split())
    if not words:
        raise PromptError("the question is empty; ask something, as 'What moves?'")
    return "\n" + words if after_video else words


def first_words(question: str) -> str:
    """The beginning of a question on one line, in quotes, to tell it from others."""
    text = " ".join(question.split())
    return repr(text if len(text) <= _TOLD else f"{text[:_TOLD]}...")
