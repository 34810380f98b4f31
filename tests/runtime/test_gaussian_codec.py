"""Dimension-wise Gaussian quantisation: levels, round trips, sizes, what is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqedge_runtime.vqt.bits import packed, unpacked
from vqedge_runtime.vqt.gaussian import (
    MAX_BITS,
    MIN_BITS,
    GaussianCodec,
    fitted,
    levels,
)

BITS = range(MIN_BITS, MAX_BITS + 1)


def codes_of(seed: int, rows: int = 64, width: int = 48) -> Any:
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.1, 5, width)
    return (rng.normal(size=(rows, width)) * spread + rng.normal(size=width)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_means_of_equally_likely_pieces(bits: int) -> None:
    """Against a million draws: each level is the mean of its piece."""
    draws = np.sort(np.random.default_rng(1).normal(size=1_000_000))
    draws = draws[np.abs(draws) <= 3]
    found = levels(bits)
    count = 1 << bits
    edges = np.quantile(
        np.random.default_rng(1).normal(size=1_000_000), np.arange(1, count) / count
    )
    pieces = np.split(draws, np.searchsorted(draws, edges))
    wanted = np.array([piece.mean() for piece in pieces])
    assert found.shape == (count,) and (np.diff(found) > 0).all()
    assert np.allclose(found, -found[::-1]), "symmetric"
    assert np.abs(found - wanted).max() < 0.01


def test_the_error_falls_with_every_bit_and_is_small_at_eight() -> None:
    codes = codes_of(2)
    errors = []
    for bits in BITS:
        codec = fitted(codes, bits)
        rest = (codec.decode(codec.encode(codes)) - codes) / codec.spread
        errors.append(float((rest**2).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.15 and errors[-1] < 0.003
    print({bits: round(error, 4) for bits, error in zip(BITS, errors, strict=True)})


@pytest.mark.parametrize("bits", BITS)
def test_coding_twice_changes_nothing(bits: int) -> None:
    codes = codes_of(3)
    codec = fitted(codes, bits)
    once = codec.encode(codes)
    assert np.array_equal(codec.encode(codec.decode(once)), once)
    assert once.max() < 1 << bits and len(np.unique(once)) == 1 << bits


@pytest.mark.parametrize("bits", BITS)
def test_every_number_goes_to_its_nearest_level(bits: int) -> None:
    codes = codes_of(4, rows=20, width=5)
    codec = fitted(codes, bits)
    z = np.clip((codes.astype(np.float64) - codec.mean) / codec.spread, -3, 3)
    wanted = np.abs(z[..., None] - levels(bits)).argmin(axis=2)
    assert np.array_equal(codec.encode(codes), wanted)


def test_halfway_goes_to_the_lower_level_and_far_away_to_the_last() -> None:
    codec = GaussianCodec(2, np.zeros(1, np.float32), np.ones(1, np.float32))
    values = np.array([[0.0], [1e9], [-1e9]], np.float32)
    assert codec.encode(values)[:, 0].tolist() == [1, 3, 0]


def test_a_dimension_that_does_not_vary_comes_back() -> None:
    codes = codes_of(5)
    codes[:, 3] = 7.25
    codec = fitted(codes, 4)
    assert np.abs(codec.decode(codec.encode(codes))[:, 3] - 7.25).max() < 1e-4


@given(
    bits=st.integers(MIN_BITS, MAX_BITS),
    rows=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_packing_is_undone_and_wastes_no_bits(bits: int, rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 1 << bits, (rows, width)).astype(np.uint8)
    data = packed(indices, bits)
    assert len(data) == -(-rows * width * bits // 8)
    assert np.array_equal(unpacked(data, (rows, width), bits), indices)
    with pytest.raises(ValueError, match=r"do not hold \(.*\) levels"):
        unpacked(data + b"\0", (rows, width), bits)


def test_unpacking_does_not_widen_every_bit() -> None:
    data = packed(np.ones((1000, 100), np.uint8), 8)
    tracemalloc.start()
    numbers = unpacked(data, (1000, 100), 8)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 21 * numbers.size


def test_bits_after_the_last_level_are_refused() -> None:
    data = bytearray(packed(np.zeros((1, 1), np.uint8), 3))
    data[0] |= 1 << 7
    with pytest.raises(ValueError, match="1 bytes do not hold"):
        unpacked(bytes(data), (1, 1), 3)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        (codes_of(1), 1),
        (codes_of(1), 9),
        (np.zeros((0, 3), np.float32), 4),
        (np.array([[np.nan]], np.float32), 4),
    ],
)
def test_what_cannot_be_fitted(codes: Any, bits: int) -> None:
    with pytest.raises(ValueError, match=r"bits must be 2 to 8|want finite codes"):
        fitted(codes, bits)
