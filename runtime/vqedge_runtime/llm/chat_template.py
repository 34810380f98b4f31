"""What is around a video: the system message before it, questions and answers after it, as ids."""

from __future__ import annotations

from collections.abc import Sequence

from vqedge.errors import PromptError
from vqedge.prompt import prompt_parts, question_text, text_between_turns
from vqedge_runtime.llm.handles import Model
from vqedge_runtime.llm.protocol import Exchange, check_answer


class ChatTemplate:
    """The chat template of a model's file, cut where video, question and answer go.

    Args:
        model: stays the caller's.
        system: the system message.

    Raises:
        PromptError: the file's chat template cannot be used.
    """

    def __init__(self, model: Model, system: str) -> None:
        self._model = model
        parts = prompt_parts(model.render_chat, system)
        self.before_video = model.tokens_from_text(parts.before_video, special=True)
        first = model.first_token
        if first is not None and self.before_video[:1] != [first]:
            self.before_video.insert(0, first)
        self.after_question = model.tokens_from_text(parts.after_question, special=True)
        between = text_between_turns(model.render_chat, system)
        self._between = None if between is None else model.tokens_from_text(between, special=True)
        self._end = _end_of_turn(model)

    def after_video(self, question: str, history: Sequence[Exchange] = ()) -> list[int]:
        """Ids from the first question on, up to the answer to come.

        Raises:
            PromptError: a question is empty, or the template has no second turn for a history.
        """
        if history and self._between is None:
            raise PromptError(
                f"the chat template of {self._model.path.name} tells a second turn otherwise; "
                "ask without history"
            )
        ids: list[int] = []
        for past in history:
            answer = self._model.tokens_from_text(past.answer, special=False)
            ids += [*self._turn(past.question, not ids), *answer, *(self._between or ())]
        return ids + self._turn(question, not ids)

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer with its end of turn, to be scored; space around it is ignored.

        Raises:
            PromptError: the answer is empty.
        """
        check_answer(answer)
        return [*self._model.tokens_from_text(answer.strip(), special=False), self._end]

    def _turn(self, question: str, first: bool) -> list[int]:
        """Ids of a question, up to its answer."""
        text = question_text(question, after_video=first)
        return self._model.tokens_from_text(text, special=False) + self.after_question


def _end_of_turn(model: Model) -> int:
    """The id that the chat template puts after an answer."""
    talk = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "[[answer]]"}]
    _, _, tail = model.render_chat(talk, open_answer=False).partition("[[answer]]")
    ids = model.tokens_from_text(tail, special=True)
    return next(filter(model.is_end, ids), model.end_of_text)
