"""A question out of the command line's words."""

from __future__ import annotations

from vqedge.errors import PromptError, UsageError
from vqedge.prompt import question_text


def check_question(question: str) -> None:
    """Refuse an empty question before any file is opened.

    Raises:
        UsageError: it is empty.
    """
    try:
        question_text(question)
    except PromptError as error:
        raise UsageError(str(error)) from error
