"""Continuations of one prompt: in a batch as alone."""

from __future__ import annotations

import pytest
import torch
from tiny_model import CONFIG, tiny_llm
from torch import Tensor

from vqedge.model.continuations import Continuations

PREFIX = (5, 9, 2)
TEXTS = ((7,), (3, 1, 4, 1, 5), (8, 2))
MORE = ((6, 6, 6), (2,), (9, 1))


def embedded(*ids: int) -> Tensor:
    rows: Tensor = tiny_llm().get_input_embeddings()(torch.tensor(ids))
    return rows


@torch.no_grad()
def states_alone(*ids: int) -> Tensor:
    """Hidden states of reading everything anew, without a cache."""
    found: Tensor = tiny_llm().model(inputs_embeds=embedded(*ids)[None]).last_hidden_state[0]
    return found


@torch.no_grad()
def test_rows_of_unlike_lengths_are_read_as_if_alone() -> None:
    """Twice, so that the second text of a row stands behind padding of the first."""
    whole = Continuations(tiny_llm())
    whole.read([embedded(*PREFIX)])
    rows = whole.fork([0, 0, 0])
    first = rows.read([embedded(*text) for text in TEXTS])
    second = rows.read([embedded(*text) for text in MORE])
    for text, more, early, late in zip(TEXTS, MORE, first, second, strict=True):
        states = states_alone(*PREFIX, *text, *more)
        assert early.shape == (len(text), CONFIG.llm.width)
        torch.testing.assert_close(torch.cat([early, late]), states[len(PREFIX) :])


@torch.no_grad()
def test_a_fork_picks_repeats_and_leaves_its_origin_alone() -> None:
    origin = Continuations(tiny_llm()).fork([0, 0, 0])
    origin.read([embedded(*text) for text in TEXTS])
    other = origin.fork([2, 1, 2])
    found = other.read([embedded(*text) for text in MORE])
    again = origin.read([embedded(*text) for text in MORE])
    for row, text, more in zip(found, (TEXTS[2], TEXTS[1], TEXTS[2]), MORE, strict=True):
        torch.testing.assert_close(row, states_alone(*text, *more)[len(text) :])
    for row, text, more in zip(again, TEXTS, MORE, strict=True):
        torch.testing.assert_close(row, states_alone(*text, *more)[len(text) :])


@torch.no_grad()
def test_log_probabilities_are_those_of_the_model() -> None:
    states = Continuations(tiny_llm()).read([embedded(*PREFIX)])[0]
    logits = tiny_llm()(inputs_embeds=embedded(*PREFIX)[None]).logits[0]
    found = Continuations(tiny_llm()).log_probabilities(states)
    torch.testing.assert_close(found, logits.double().log_softmax(-1))
    assert found.dtype == torch.float64
    assert found.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(PREFIX))
