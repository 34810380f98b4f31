"""Ask a suite's questions and count the right answers.

Works for anything that answers: bundle or checkpoint.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from vqedge.data.questions import facts_of
from vqedge.data.suites import Item
from vqedge.errors import PromptError, VideoError, VqtError
from vqedge.intervals import Z95, t95, wilson_interval
from vqedge.prompt import first_words

_DASHES = str.maketrans("\u2010\u2012\u2013\u2014\u2015\u2212\u2044", "------/")
_MARK = re.compile(
    r"(?P<of_number>(?<=\d)[.:/-](?=\d)|(?<!\w)[-+.](?=\.?\d))"
    r"|(?P<of_words>(?<=[^\W\d_])[-/](?=[^\W\d_]))|[\W_]"
)


@dataclass(frozen=True)
class Reply:
    """An answer and the video tokens it cost."""

    text: str
    tokens: int


class Answerer(Protocol):
    """Whatever is evaluated."""

    @property
    def backend(self) -> dict[str, str]:
        """What runs where: `encoder` and `llm`."""

    @property
    def tokens_before(self) -> int:
        """Patches of a clip: visual tokens before quantisation."""

    @property
    def frames(self) -> int:
        """Frames it looks at."""

    def replies(self, items: Sequence[Item]) -> Iterable[Reply]:
        """Answer questions about one clip, in their order."""


class PerturbedAnswerer(Answerer, Protocol):
    """One that can be shown less than the clip."""

    def perturbed(self) -> dict[str, Answerer]:
        """The same models, shown less, by what they are shown."""


OnItem = Callable[[Item, Reply, bool], None]
"""Told each question, its answer, and whether it is right."""


@dataclass
class Tally:
    """Right answers among all, of every clip that was asked about.

    Parts of one video are one clip here: answers about them are right or wrong together.
    """

    right: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    places: dict[Hashable, int] = field(default_factory=dict)

    def add(self, hit: bool, clip: Hashable) -> None:
        """Count one answer about a clip, in whatever order."""
        place = self.places.setdefault(clip, len(self.asked))
        if place == len(self.asked):
            self.right.append(0)
            self.asked.append(0)
        self.right[place] += hit
        self.asked[place] += 1

    @property
    def total(self) -> int:
        """Answers counted."""
        return sum(self.asked)

    @property
    def accuracy(self) -> float:
        """Share of right answers in [0, 1]."""
        return sum(self.right) / self.total

    @property
    def design_effect(self) -> float:
        """How many times fewer questions would say as much, if each were about a clip of its own.

        Answers about one clip are right or wrong together: the variance of the share over clips
        (Cochran, Sampling Techniques, 3rd ed., 3.12), as a multiple of that over questions; at
        least 1. The fewer clips, the less sure that is: times the square of how much wider
        Student's t is than the normal distribution. Where all are right, or none, nothing tells
        what they have in common: no more questions than clips. It cannot be told from one clip;
        1 then, as where no clip was asked about twice.
        """
        share, clips, total = self.accuracy, len(self.asked), self.total
        if clips < 2 or clips == total:
            return 1.0
        few = (t95(clips - 1) / Z95) ** 2
        if share in (0.0, 1.0):
            return max(few, total / clips)
        pairs = zip(self.right, self.asked, strict=True)
        squares = sum((right - share * asked) ** 2 for right, asked in pairs)
        alone = share * (1 - share) * total**2 / (total - 1)
        return max(squares * clips / (clips - 1) / alone, 1.0) * few

    def to_dict(self) -> dict[str, Any]:
        """Counts, share and its 95 % interval."""
        interval = wilson_interval(sum(self.right), self.total, self.design_effect)
        return {
            "n": self.total,
            "clips": len(self.asked),
            "accuracy": self.accuracy,
            "interval": list(interval),
        }


@dataclass
class Prior:
    """What can be scored without any video: one answer to all questions of a kind.

    Of choices, or of the answers that a question names, one is picked blindly.
    """

    answers: Counter[str] = field(default_factory=Counter)
    picked: float = 0.0

    def add(self, item: Item) -> None:
        """Count one question."""
        if among := item.choices or item.named:
            self.picked += 1 / len(among)
        else:
            self.answers[_normalised(item.answer)] += 1

    @property
    def right(self) -> float:
        """Questions that the most frequent answer is right for."""
        return self.picked + max(self.answers.values(), default=0)


def priors_of(items: Iterable[Item]) -> dict[str, Prior]:
    """What questions can be scored blindly, by their kind."""
    priors: dict[str, Prior] = {}
    for item in items:
        priors.setdefault(item.kind, Prior()).add(item)
    return priors


@dataclass(frozen=True)
class EvalReport:
    """The result of a suite; `to_dict` is the JSON that scripts read.

    Attributes:
        suite: its name.
        overall: all answers.
        by_kind: answers by kind of question.
        priors: what the most frequent answer would score, by kind of question.
        tokens_mean: video tokens the language model read, mean over the questions.
        tokens_before: visual tokens before quantisation.
        frames: frames looked at.
        failed: why clips or questions that cannot be read were left out, a line each.
        extra: more keys of the JSON.
        baselines: the same questions through something else, by what it is.
        facts: those of right descriptions, and which of them the answers tell.
        described: answers that tell all of them and nothing else, in any order.
        by_group: answers by group of kinds, where a suite has such.
    """

    suite: str
    overall: Tally
    by_kind: dict[str, Tally]
    priors: dict[str, Prior]
    tokens_mean: float
    tokens_before: int
    frames: int
    failed: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, EvalReport] = field(default_factory=dict)
    facts: Tally = field(default_factory=Tally)
    described: Tally = field(default_factory=Tally)
    by_group: dict[str, Tally] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        TokDense is accuracy in percent per token (VQToken, section 4); `tokdense_denominator` names
        the key that it is divided by. `prior` is the share that the most frequent answer of each
        kind would score; `by_clip` is what differences between reports are told apart by
        (`vqedge.intervals.paired_interval`).
        """
        percent = 100 * self.overall.accuracy
        by_kind = {
            kind: {**tally.to_dict(), "prior": self.priors[kind].right / tally.total}
            for kind, tally in sorted(self.by_kind.items())
        }
        told = {"facts": self.facts, "described": self.described} if self.facts.total else {}
        by_group = {group: tally.to_dict() for group, tally in sorted(self.by_group.items())}
        baselines = {name: report.to_dict() for name, report in self.baselines.items()}
        return {
            "suite": self.suite,
            **self.overall.to_dict(),
            "prior": sum(prior.right for prior in self.priors.values()) / self.overall.total,
            "by_kind": by_kind,
            **({"by_group": by_group} if by_group else {}),
            "by_clip": {"right": self.overall.right, "asked": self.overall.asked},
            "tokens_mean": self.tokens_mean,
            "tokens_before": self.tokens_before,
            "frames": self.frames,
            "tokdense": percent / self.tokens_mean if self.tokens_mean else 0.0,
            "tokdense_denominator": "tokens_mean",
            "failed": self.failed,
            **self.extra,
            **{name: tally.to_dict() for name, tally in told.items()},
            **({"baselines": baselines} if baselines else {}),
        }


def evaluate(
    answerer: Answerer,
    suite: str,
    items: Sequence[Item],
    on_item: OnItem = lambda *_: None,
) -> EvalReport:
    """Ask every question once.

    Args:
        answerer: what is evaluated.
        suite: name for the report.
        items: the questions, at least one; those about one clip come one after another.
        on_item: told each answer.

    Raises:
        VideoError: none of the clips can be read.
    """
    overall, tokens, failed = Tally(), 0, list[str]()
    by_kind: dict[str, Tally] = {}
    by_group: dict[str, Tally] = {}
    answered: list[tuple[Item, str]] = []
    for item, reply in _answered(answerer, items, failed):
        hit = reply.text == item.answer if item.choices else is_right(reply.text, item.answer)
        tokens += reply.tokens
        clip = item.seen_in
        overall.add(hit, clip)
        by_kind.setdefault(item.kind, Tally()).add(hit, clip)
        if item.group:
            by_group.setdefault(item.group, Tally()).add(hit, clip)
        answered.append((item, reply.text))
        on_item(item, reply, hit)
    if not overall.total:
        raise VideoError(failed[0])
    facts, described = _facts_told(answered)
    return EvalReport(
        suite,
        overall,
        by_kind,
        priors_of(item for item, _ in answered),
        tokens / overall.total,
        answerer.tokens_before,
        answerer.frames,
        failed,
        {"backend": answerer.backend},
        facts=facts,
        described=described,
        by_group=by_group,
    )


def _answered(
    answerer: Answerer, items: Sequence[Item], failed: list[str]
) -> Iterator[tuple[Item, Reply]]:
    """Every question with its answer; why clips or questions cannot be read is appended."""
    for _, group in groupby(items, key=lambda item: item.clip):
        yield from _answered_about_one(answerer, list(group), failed)


def _answered_about_one(
    answerer: Answerer, items: Sequence[Item], failed: list[str]
) -> Iterator[tuple[Item, Reply]]:
    """Those about one clip; one by one from where one of them cannot be read."""
    answered = 0
    try:
        for item, reply in zip(items, answerer.replies(items), strict=True):
            answered += 1
            yield item, reply
    except (VideoError, VqtError) as error:
        failed.append(str(error))
    except PromptError as error:
        if len(items) == 1:
            failed.append(f"{first_words(items[0].question)}: {error}")
            return
        for item in items[answered:]:
            yield from _answered_about_one(answerer, [item], failed)


def _facts_told(answered: Iterable[tuple[Item, str]]) -> tuple[Tally, Tally]:
    """Facts, and descriptions that tell all of theirs and nothing else."""
    facts, described = Tally(), Tally()
    for item, answer in answered:
        if item.facts:
            told, nothing_else = _told(item.facts, answer)
            for fact in told:
                facts.add(fact, item.seen_in)
            described.add(all(told) and nothing_else, item.seen_in)
    return facts, described


def _told(facts: Iterable[str], answer: str) -> tuple[list[bool], bool]:
    """Does an answer tell each fact, one that is there twice twice, and does it tell no other?"""
    told, wanted = (Counter(map(_normalised, each)) for each in (facts_of(answer.lower()), facts))
    found, count = (told & wanted).total(), wanted.total()
    return [number < found for number in range(count)], told.total() == found


def is_right(found: str, wanted: str) -> bool:
    """Exact match, whatever the case, punctuation, symbols, articles and space.

    Signs and points of numbers stay: 3.5 is not 35. A hyphen or slash between letters is a space.
    Texts of nothing but punctuation must be the same; an empty one is never right.
    """
    answer = _normalised(found)
    return bool(answer) and answer == _normalised(wanted)


def _normalised(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    words = _MARK.sub(_kept, text).split()
    words = [word for word in words if word not in {"a", "an", "the"}] or words
    return " ".join(words) or text.strip()


def _kept(mark: re.Match[str]) -> str:
    """What stays of one: marks of numbers, accents and space."""
    if mark["of_number"] or unicodedata.category(mark[0])[0] not in "PS":
        return mark[0]
    return " " if mark["of_words"] else ""
