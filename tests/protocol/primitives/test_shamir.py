"""Secret sharing: any t shares give the secret, and fewer give nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedddpm_protocol.primitives.shamir import combine, inverse, multiply, split

SECRET = bytes(range(100, 132))


def by_long_multiplication(left: int, right: int) -> int:
    """Carry-less product reduced by x^8 + x^4 + x^3 + x + 1, written without tables."""
    product = 0
    for bit in range(8):
        if right >> bit & 1:
            product ^= left << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def test_the_field_is_that_of_aes() -> None:
    for left, right in itertools.product(range(256), repeat=2):
        assert multiply(left, right) == by_long_multiplication(left, right)
    assert multiply(0x53, 0xCA) == 1  # FIPS 197, section 4.2
    assert all(multiply(value, inverse(value)) == 1 for value in range(1, 256))
    with pytest.raises(ZeroDivisionError):
        inverse(0)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 8), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, t: int, more: int, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, 255), min_size=t + more, max_size=t + more, unique=True))
    shares = split(secret, t, points)
    chosen = data.draw(st.permutations(points))[:t]
    assert combine({x: shares[x] for x in chosen}) == secret


def _constant(value: int, size: int) -> bytes:
    return bytes([value]) * size


def test_fewer_shares_say_nothing() -> None:
    """Every secret byte is equally compatible with t - 1 shares: over all coefficients each value appears once."""
    for secret in (b"\x00", b"\x9c"):
        seen = Counter(split(secret, 2, [1, 2], partial(_constant, k))[1] for k in range(256))
        assert len(seen) == 256


@pytest.mark.parametrize("points", [[0, 1, 2], [1, 1, 2], [1, 2, 256], [1, 2]])
def test_points_must_be_distinct_and_not_zero(points: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        split(SECRET, 3, points)


def test_one_wrong_share_gives_another_secret() -> None:
    """Nothing here tells: the commitments do."""
    shares = split(SECRET, 3, range(1, 6))
    shares[2] = bytes(32)
    assert combine({x: shares[x] for x in (1, 2, 3)}) != SECRET
    assert combine({x: shares[x] for x in (1, 3, 4)}) == SECRET
