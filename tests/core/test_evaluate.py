"""Evaluation: what counts as right, how sure the share is, and what a report says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vqedge.data.jsonl import VideoFile
from vqedge.data.suites import Item
from vqedge.errors import PromptError, VideoError
from vqedge.evaluate import EvalReport, Reply, Tally, evaluate, is_right
from vqedge.intervals import Z95, paired_interval, t95, wilson_interval

# ---- one answer


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("red", "red"),
        ("Red.", "red"),
        ("  a  red\nball ", "The red ball!"),
        ("An apple", "apple"),
        ('"yes"', "Yes"),
        ("$3.50!", "3.50"),
        ("5-year-old", "5year-old."),
        ("(-5)", "-5"),
        ('"-.5"', "-.5"),
        ("blue-2", "blue2"),
        ("don\u2019t", "don't"),
        ("\u201cred\u201d", "red"),
        ("\u7ea2\u3002", "\u7ea2"),
        ("up-left", "up left"),
        ("red/blue", "red blue"),
        ("red\u2013blue", "red-blue"),
        ("\u22125", "-5"),
        ("\uff13\uff0e\uff15", "3.5"),
        ("\xbd", "1/2"),
        ("STRASSE", "stra\xdfe"),
        ("cafe\u0301", "caf\xe9"),
        ("\u20ac3", "3"),
        ("+", "+"),
    ],
)
def test_right(found: str, wanted: str) -> None:
    assert is_right(found, wanted)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("blue", "red"),
        ("red ball", "red"),
        ("", "red"),
        ("redball", "red ball"),
        ("not red", "red"),
        ("theory", "ory"),
        ("2", "3"),
        ("35", "3.5"),
        ("5", "-5"),
        ("(-5)", "5"),
        ("-.5", "5"),
        ("130", "1:30"),
        ("the", "a"),
        ("...", "a"),
        ("", "the"),
        ("", ""),
        ("...", "?"),
        ("", "?"),
        ("\xbd", "12"),
        ("3\u20135", "35"),
        ("upleft", "up left"),
        ("\u0915\u093f", "\u0915"),
    ],
)
def test_wrong(found: str, wanted: str) -> None:
    assert not is_right(found, wanted)


# ---- how sure


@pytest.mark.parametrize(
    ("right", "total", "interval"),
    # Newcombe 1998, table I, method 3 (score, no continuity correction), rounded there to 4 places
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_the_wilson_interval(right: int, total: int, interval: tuple[float, float]) -> None:
    found = wilson_interval(right, total)
    assert found == pytest.approx(interval, abs=6e-5)
    assert 0.0 <= found[0] <= right / total <= found[1] <= 1.0


def tally_of(clips: dict[str, str]) -> Tally:
    """Answers about each clip, right `+` or wrong `-`."""
    tally = Tally()
    for clip, answers in clips.items():
        for answer in answers:
            tally.add(answer == "+", clip)
    return tally


@pytest.mark.parametrize(
    ("degrees", "wanted"),
    # the table of Student (column 0.975), as every textbook prints it
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (6, 2.447),
        (9, 2.262),
        (10, 2.228),
        (22, 2.074),
        (30, 2.042),
        (60, 2.000),
        (120, 1.980),
        (10_000, 1.960),
    ],
)
def test_students_t(degrees: int, wanted: float) -> None:
    assert t95(degrees) == pytest.approx(wanted, abs=5.1e-4)


def few(clips: int) -> float:
    """How much more is uncertain where the spread is told by so many clips only."""
    return (t95(clips - 1) / Z95) ** 2


def test_answers_about_one_clip_that_go_together_count_as_fewer() -> None:
    apart = tally_of({str(number): answer for number, answer in enumerate("+++-" * 10)})
    assert apart.design_effect == 1.0, "a question a clip: the interval of so many questions"
    assert apart.to_dict()["interval"] == list(wilson_interval(30, 40))
    spread = tally_of({str(number): "+++-" for number in range(10)})
    assert spread.design_effect == pytest.approx(few(10)), "each clip says the same: no less"
    together = tally_of({str(number): "++++" if number % 4 else "----" for number in range(40)})
    wanted = 4 * 40 / 39 * 159 / 160 * few(40)
    assert together.design_effect == pytest.approx(wanted), "as one question a clip"
    found = together.to_dict()
    assert (found["n"], found["clips"], found["accuracy"]) == (160, 40, 0.75)
    assert found["interval"] == pytest.approx(wilson_interval(30, 40, few(40)), abs=0.003)


def test_answers_all_alike_about_few_clips_are_less_sure_than_as_many_clips() -> None:
    alike = tally_of({"a": "+++", "b": "+++", "c": "++"})
    assert alike.design_effect == pytest.approx((4.30265 / 1.95996) ** 2, abs=1e-4)
    many = [tally_of(dict.fromkeys("abcdefgh", answer * 15)) for answer in "+-"]
    assert [tally.design_effect for tally in many] == [15.0, 15.0], "as one question a clip"
    assert many[0].to_dict()["interval"] == pytest.approx(wilson_interval(8, 8))
    assert tally_of({"a": "-", "b": "-", "c": "-"}).design_effect == 1.0
    assert tally_of({"a": "++-"}).design_effect == 1.0, "one clip says nothing of others"


def test_a_difference_is_told_clip_by_clip() -> None:
    found = paired_interval([2, 0, 1, 3], [1, 1, 1, 1], [3, 3, 3, 3])
    assert found[0] == pytest.approx(2 / 12)
    spread = [1 - 0.5, -1 - 0.5, 0 - 0.5, 2 - 0.5]
    half = 3.182 * (sum(x * x for x in spread) * 4 / 3) ** 0.5 / 12
    assert found[1:] == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-3)
    assert paired_interval([2, 1], [1, 0], [4, 4]) == (0.25, 0.25, 0.25), "each clip says the same"
    assert paired_interval([2, 0], [0, 1], [2, 2])[1:] == (-1.0, 1.0), "no more than a difference"
    assert paired_interval([2], [1], [4]) == (0.25, -1.0, 1.0), "one clip says nothing of others"
    with pytest.raises(ValueError, match="zip"):
        paired_interval([1], [1, 2], [2, 2])


# ---- a suite


class Parrot:
    """Says what it is told, at 10 tokens, then 20, and so on."""

    backend = {"encoder": "none", "llm": "none"}  # noqa: RUF012 - a constant of a stand-in
    tokens_before = 2048
    frames = 8

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.tokens = 0

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        for _ in items:
            self.tokens += 10
            yield Reply(next(self._texts), self.tokens)


def items_of(*kinds_and_answers: str) -> list[Item]:
    pairs = (text.split(":") for text in kinds_and_answers)
    return [Item(VideoFile(Path("a.mp4")), kind, "What?", answer) for kind, answer in pairs]


def test_a_report_counts_by_kind_and_overall() -> None:
    told: list[tuple[str, str, bool]] = []
    report = evaluate(
        Parrot(["red", "blue", "2", "3"]),
        "mine",
        items_of("count:2", "color:blue", "count:2", "count:3"),
        lambda item, reply, hit: told.append((item.kind, reply.text, hit)),
    )
    document = report.to_dict()
    assert document == {
        "suite": "mine",
        "n": 4,
        "clips": 1,
        "accuracy": 0.75,
        "interval": list(wilson_interval(3, 4)),
        "prior": 0.75,
        "by_kind": {
            "color": {
                "n": 1,
                "clips": 1,
                "accuracy": 1.0,
                "interval": list(wilson_interval(1, 1)),
                "prior": 1.0,
            },
            "count": {
                "n": 3,
                "clips": 1,
                "accuracy": 2 / 3,
                "interval": list(wilson_interval(2, 3)),
                "prior": 2 / 3,
            },
        },
        "by_clip": {"right": [3], "asked": [4]},
        "tokens_mean": 25.0,
        "tokens_before": 2048,
        "frames": 8,
        "tokdense": 3.0,  # 75 percent over 25 tokens
        "tokdense_denominator": "tokens_mean",
        "failed": [],
        "backend": {"encoder": "none", "llm": "none"},
    }
    assert list(document["by_kind"]) == ["color", "count"]
    assert json.loads(json.dumps(document)) == document
    assert told == [
        ("count", "red", False),
        ("color", "blue", True),
        ("count", "2", True),
        ("count", "3", True),
    ]


def test_a_report_counts_by_group_too_where_there_are_such() -> None:
    items = items_of("CW:red", "CH:red", "TN:red")
    assert "by_group" not in evaluate(Parrot(["red"] * 3), "mine", items).to_dict()
    grouped = [replace(item, group=item.kind[0]) for item in items]
    document = evaluate(Parrot(["red", "blue", "red"]), "mine", grouped).to_dict()
    assert list(document["by_kind"]) == ["CH", "CW", "TN"]
    one = {"n": 1, "clips": 1, "accuracy": 1.0, "interval": list(wilson_interval(1, 1))}
    assert document["by_group"]["T"] == one
    assert document["by_group"]["C"]["n"] == 2 and document["by_group"]["C"]["accuracy"] == 0.5


def test_parts_of_one_video_are_right_or_wrong_together(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    names = ("a.mp4", "b.mp4", "c.mp4", "link.mp4")
    clips = [VideoFile(tmp_path / n, start, start + 1.0) for start in range(5) for n in names]
    items = [Item(clip, "all", "What?", str("a" in clip.path.stem)) for clip in clips]
    items += [replace(item, answer="True") for item in items if item.clip.path.stem == "link"]
    document = evaluate(Parrot(["True"] * 25), "mine", items).to_dict()
    assert (document["n"], document["clips"], document["by_kind"]["all"]["clips"]) == (25, 3, 3)
    assert document["by_clip"] == {"right": [10, 0, 0], "asked": [15, 5, 5]}
    tally = tally_of({"a": "+" * 10 + "-" * 5, "b": "-" * 5, "c": "-" * 5})
    assert document["interval"] == tally.to_dict()["interval"]


def test_extra_keys_are_added_and_no_token_means_no_density() -> None:
    tally = Tally()
    tally.add(True, "a clip")
    report = EvalReport("x", tally, {}, {}, 0.0, 2048, 8, extra={"backend": "none"})
    assert report.to_dict()["backend"] == "none"
    assert report.to_dict()["tokdense"] == 0.0
    assert "baselines" not in report.to_dict()


class OfOneFile(Parrot):
    """Can read one file only."""

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        clip = items[0].clip
        assert isinstance(clip, VideoFile)
        if clip.path.name != "a.mp4":
            raise VideoError(f"{clip.path}: no such codec")
        return super().replies(items)


def test_a_clip_that_cannot_be_read_is_left_out_and_told() -> None:
    broken = [Item(VideoFile(Path(name)), "count", "What?", "2") for name in ("b.mp4", "c.mp4")]
    items = [*broken[:1], *items_of("count:2", "count:3"), *broken[1:]]
    document = evaluate(OfOneFile(["2", "2"]), "mine", items).to_dict()
    assert document["failed"] == ["b.mp4: no such codec", "c.mp4: no such codec"]
    assert (document["n"], document["accuracy"], document["tokens_mean"]) == (2, 0.5, 15.0)
    with pytest.raises(VideoError, match=r"b\.mp4: no such codec"):
        evaluate(OfOneFile([]), "mine", broken)


class OfShortQuestions(Parrot):
    """Reads no long question, and looks at all of them first if it is told to."""

    def __init__(self, texts: Iterable[str], ahead: bool) -> None:
        super().__init__(texts)
        self._ahead = ahead

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        for item in items if self._ahead else ():
            self._read(item)
        for item in items:
            self._read(item)
            yield from super().replies([item])

    def _read(self, item: Item) -> None:
        if len(item.question) > 100:
            raise PromptError("needs a context of 9000")


@pytest.mark.parametrize("ahead", [False, True])
def test_a_question_that_cannot_be_read_is_left_out_and_told(ahead: bool) -> None:
    first, *more = items_of("count:2", "count:3", "count:4", "count:5")
    long = Item(first.clip, "count", f"Is it {'very ' * 30}red?", "yes")
    answerer = OfShortQuestions(["2", "3", "4", "5"], ahead)
    document = evaluate(answerer, "mine", [first, long, *more]).to_dict()
    assert (document["n"], document["clips"], document["accuracy"]) == (4, 1, 1.0)
    [told] = document["failed"]
    assert told.startswith("'Is it very very ") and told.endswith("...': needs a context of 9000")


def test_of_choices_one_is_picked_blindly() -> None:
    asked = items_of("thing:cat", "thing:a cat", "thing:dog")
    choice = replace(asked[0], choices=("cat", "dog", "cow", "hen"))
    document = evaluate(Parrot(["dog"] * 4), "mine", [*asked, choice]).to_dict()
    assert document["by_kind"]["thing"]["prior"] == (2 + 0.25) / 4 == document["prior"]


def test_of_answers_that_the_question_names_one_is_picked_blindly() -> None:
    asked = [
        replace(item, named=(item.answer, "the cow"))
        for item in items_of("first:the cat", "first:the dog", "first:the hen")
    ]
    document = evaluate(Parrot(["the cow"] * 3), "mine", asked).to_dict()
    assert document["by_kind"]["first"]["prior"] == 0.5 == document["prior"]


CAPTION = "a video of a red ring moving up and left, a still blue star and a red ring moving up"
FACTS = ("a red ring moving up and left", "a still blue star", "a red ring moving up")


@pytest.mark.parametrize(
    ("answer", "told", "whole", "right"),
    [
        (CAPTION, 3, True, True),
        (f"A{CAPTION[1:].upper()}.", 3, True, True),
        ("A still blue star, a red ring moving up, a red ring moving up and left.", 3, True, False),
        (f"{CAPTION} and a still blue star", 3, False, False),
        ("a video of a red ring moving up and a red ring moving up", 1, False, False),
        ("a video of a red ring moving up and left and a still blue star", 2, False, False),
        ("a video of a red ring moving up and right, a blue star moving left", 0, False, False),
        ("a video of a still blue starfish, then a red ring", 0, False, False),
        ("", 0, False, False),
    ],
)
def test_a_description_tells_some_of_the_facts(
    answer: str, told: int, whole: bool, right: bool
) -> None:
    item = replace(items_of(f"caption:{CAPTION}")[0], facts=FACTS)
    document = evaluate(Parrot([answer]), "mine", [item]).to_dict()
    assert document["accuracy"] == right
    facts, described = document["facts"], document["described"]
    assert (facts["n"], facts["clips"], facts["accuracy"]) == (3, 1, pytest.approx(told / 3))
    assert (described["n"], described["accuracy"]) == (1, whole)


def test_a_thing_that_is_shown_again_is_told_twice() -> None:
    text = "a video of a dog, then a cat, then a dog"
    item = replace(items_of(f"caption:{text}")[0], facts=("a dog", "a cat", "a dog"))
    found = evaluate(Parrot(["a video of a cat, then a dog"]), "mine", [item]).facts
    assert found.right == [2] and found.asked == [3]


def test_a_report_holds_those_of_its_baselines() -> None:
    items = items_of("count:2", "count:3")
    report = evaluate(Parrot(["2", "3"]), "mine", items)
    report.baselines["blind"] = evaluate(Parrot(["2", "2"]), "mine", items)
    document = report.to_dict()
    assert document["accuracy"] == 1.0 and list(document["baselines"]) == ["blind"]
    assert document["baselines"]["blind"] == report.baselines["blind"].to_dict()
    assert document["baselines"]["blind"]["by_kind"]["count"]["accuracy"] == 0.5
