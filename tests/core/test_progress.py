"""How far a command is, on a stderr that is no terminal."""

from __future__ import annotations

import pytest

import vqedge.progress as module
from vqedge.progress import progress


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", total=1000, completed=100) as advance:
        for step in range(8):
            clock.now += 10.0
            advance(f"loss {step}")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "training: 103/1000, 2:29:30 left  loss 2",
        "training: 106/1000, 2:29:00 left  loss 5",
    ]
    assert not printed.out


@pytest.mark.parametrize("how", [{"total": 3, "shown": False}, {"total": 0}])
def test_nothing_is_told_where_nothing_is_to_be(
    clock: Clock, capsys: pytest.CaptureFixture[str], how: dict[str, int]
) -> None:
    with progress("training", **how) as advance:
        clock.now += 100.0
        advance("")
    assert capsys.readouterr() == ("", "")
