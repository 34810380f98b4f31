"""NExT-QA with its choices in the question, as the authors of VQToken ask it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqedge.data.suites import missing_videos, suite_items, suite_version
from vqedge.errors import DatasetError

ROWS = """video,question,answer,type,a0,a1,a2,a3,a4
7,how do they play,2,CH, roll ,tap,strum,hit,pat
7,why?,0,CW,b,c,d,e,f
8,where,4,DL,b,c,d,e,f
"""


def test_choices_are_shown_and_a_letter_is_the_answer(tmp_path: Path) -> None:
    (tmp_path / "7.mp4").touch()
    path = tmp_path / "test.csv"
    path.write_text(ROWS)
    items = suite_items(f"nextqa-letters:{path}", videos=tmp_path)
    assert [(item.kind, item.group, item.question, item.answer) for item in items] == [
        ("CH", "C", "how do they play\nA. roll\nB. tap\nC. strum\nD. hit\nE. pat", "C"),
        ("CW", "C", "why?\nA. b\nB. c\nC. d\nD. e\nE. f", "A"),
    ]
    assert {item.choices for item in items} == {("A", "B", "C", "D", "E")}
    assert missing_videos(f"nextqa-letters:{path}", tmp_path) == 1
    assert suite_version(f"nextqa-letters:{path}") == f"{suite_version(str(path))}-letters1"
    path.write_text(ROWS.replace(",2,", ",5,"))
    with pytest.raises(DatasetError, match=r"test\.csv:2: not a NExT-QA row"):
        suite_items(f"nextqa-letters:{path}", videos=tmp_path)


@pytest.mark.parametrize("suite", ["nextqa", "nextqa-letters"])
@pytest.mark.parametrize("answer", [0, 4])
def test_an_option_that_is_empty_is_named(tmp_path: Path, suite: str, answer: int) -> None:
    path, header = tmp_path / "test.csv", ROWS.splitlines()[0]
    for rows in (
        f"{header}\n7,why,{answer},CW,a,b,c,d, \n",
        f"{header[:-3]}\n7,why,0,CW,a,b,c,d\n",
    ):
        path.write_text(rows)
        with pytest.raises(DatasetError) as caught:
            suite_items(f"{suite}:{path}", videos=tmp_path)
        told = "not a NExT-QA row (a4 is empty; want five choices, a0 to a4)"
        assert str(caught.value) == f"{path}:2: {told}"
