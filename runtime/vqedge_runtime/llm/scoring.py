"""Log-likelihoods of given answers."""

from __future__ import annotations

from collections.abc import Sequence

from vqedge.errors import PromptError
from vqedge_runtime.llm.handles import Model


class Answers:
    """Turns answers into the ids that a model is to be scored on.

    Args:
        model: whose chat template ends an answer.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._end = _end_of_turn(model)

    def ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Ids of each answer with its end of turn; space around it is ignored.

        Raises:
            PromptError: there is none, or an empty one.
        """
        if not answers or not all(answer.strip() for answer in answers):
            raise PromptError("every answer needs a word, as 'red'")
        texts = (answer.strip() for answer in answers)
        return [[*self._model.tokens_from_text(text, special=False), self._end] for text in texts]


def _end_of_turn(model: Model) -> int:
    """The id that the chat template puts after an answer."""
    talk = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "[[answer]]"}]
    _, _, tail = model.render_chat(talk, open_answer=False).partition("[[answer]]")
    ids = model.tokens_from_text(tail, special=True)
    return next(filter(model.is_end, ids), model.end_of_text)
