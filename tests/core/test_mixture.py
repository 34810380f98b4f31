"""The order in which a run sees its clips."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vqedge.data import mixture
from vqedge.data.mixture import Mixture, drawn_budget

MIXTURE = Mixture(sizes=(12, 5), reversible=(True, False), weights=(3.0, 1.0), seed=4)


def test_an_order_does_not_depend_on_where_it_is_cut() -> None:
    whole = MIXTURE.picks(0, 200)
    assert whole == [pick for first in range(0, 200, 8) for pick in MIXTURE.picks(first, first + 8)]


def test_sources_come_by_weight() -> None:
    shares = Counter(pick.source for pick in MIXTURE.picks(0, 4000))
    assert shares[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_every_view_of_a_source_comes_once_an_epoch_and_the_order_changes() -> None:
    mine = [pick for pick in MIXTURE.picks(0, 400) if pick.source == 0]
    epochs = [mine[first : first + 24] for first in (0, 24, 48)]
    for epoch in epochs:
        assert len({(pick.number, pick.backwards) for pick in epoch}) == 24
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_source_that_cannot_be_turned_is_not() -> None:
    assert not any(pick.backwards for pick in MIXTURE.picks(0, 400) if pick.source == 1)


def test_other_seeds_give_other_orders() -> None:
    other = Mixture(MIXTURE.sizes, MIXTURE.reversible, MIXTURE.weights, seed=5)
    assert other.picks(0, 50) != MIXTURE.picks(0, 50)


def test_all_budgets_are_drawn() -> None:
    drawn = Counter(drawn_budget((8, 16, 32, 64), 0, step) for step in range(400))
    assert set(drawn) == {8, 16, 32, 64} and min(drawn.values()) > 70
    assert drawn_budget((8, 16), 0, 3) == drawn_budget((8, 16), 0, 3)


def test_the_past_is_drawn_now_and_then_and_is_what_one_draw_gives() -> None:
    mixture._order.cache_clear()
    picks = [pick for first in range(0, 3000, 8) for pick in MIXTURE.picks(first, first + 8)]
    assert mixture._order.cache_info().misses < 12, "375 steps"
    at_once = np.random.default_rng([MIXTURE.seed, 0]).choice(2, size=3000, p=[0.75, 0.25])
    assert [pick.source for pick in picks] == at_once.tolist()
    mine = [pick for pick in picks if pick.source == 0]
    first_epoch = np.random.default_rng([MIXTURE.seed, 1, 0, 0]).permutation(24)
    assert [pick.number + 12 * pick.backwards for pick in mine[:24]] == first_epoch.tolist()
