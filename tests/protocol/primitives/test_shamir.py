"""Secret sharing: any t shares give the secret, fewer give nothing, and wrong shares are corrected or reported."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedddpm_protocol.errors import CommitmentError
from fedddpm_protocol.primitives.shamir import combine, inverse, multiply, reconstruct, split

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
    assert reconstruct(shares, t, lambda candidate: candidate == secret) == secret


def _constant(value: int, size: int) -> bytes:
    return bytes([value]) * size


def test_fewer_shares_say_nothing() -> None:
    """Every secret byte is equally compatible with t - 1 shares: over all coefficients each value appears once."""
    for secret in (b"\x00", b"\x9c"):
        seen = Counter(split(secret, 2, [1, 2], partial(_constant, k))[1] for k in range(256))
        assert len(seen) == 256
    with pytest.raises(CommitmentError, match="fewer than the threshold"):
        reconstruct({1: SECRET, 2: SECRET}, 3, lambda candidate: True)


@pytest.mark.parametrize("points", [[0, 1, 2], [1, 1, 2], [1, 2, 256], [1, 2]])
def test_points_must_be_distinct_and_not_zero(points: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        split(SECRET, 3, points)


def lie(share: bytes, position: int | None) -> bytes:
    if position is None:
        return secrets.token_bytes(len(share))
    changed = bytearray(share)
    changed[position] ^= 0x55
    return bytes(changed)


@pytest.mark.parametrize("everywhere", [True, False], ids=["whole-share", "one-byte-each"])
@pytest.mark.parametrize(("n", "t"), [(5, 3), (7, 3), (9, 4), (20, 11)])
def test_wrong_shares_are_corrected_as_far_as_the_redundancy_goes(n: int, t: int, everywhere: bool) -> None:
    room = (n - t) // 2
    for first in range(n):
        shares = split(SECRET, t, range(1, n + 1))
        liars = {(first + step) % n + 1 for step in range(room)}
        for x in liars:
            shares[x] = lie(shares[x], None if everywhere else x % 32)
        wrong: set[int] = set()
        assert reconstruct(shares, t, lambda candidate: candidate == SECRET, wrong) == SECRET
        assert wrong <= liars  # nobody honest is called a liar
        assert reconstruct(shares, t, lambda candidate: candidate == SECRET, set(wrong)) == SECRET


@pytest.mark.parametrize(("n", "t"), [(3, 2), (5, 3), (7, 4), (9, 4)])
def test_too_many_wrong_shares_are_reported_not_believed(n: int, t: int) -> None:
    shares = split(SECRET, t, range(1, n + 1))
    for x in range(1, n - t + 2):  # one more than leaves t right shares
        shares[x] = secrets.token_bytes(32)
    with pytest.raises(CommitmentError):
        reconstruct(shares, t, lambda candidate: candidate == SECRET)


def test_shares_of_another_secret_on_one_polynomial_are_refused() -> None:
    """Consistent shares are not enough: only the commitment decides."""
    shares = split(bytes(32), 3, range(1, 6))
    with pytest.raises(CommitmentError):
        reconstruct(shares, 3, lambda candidate: candidate == SECRET)


def test_one_liar_is_searched_for_once() -> None:
    """A member that lies about every secret must not cost the aggregator a decoding for each of them."""
    wrong: set[int] = set()
    tried: list[bytes] = []

    def is_right(candidate: bytes) -> bool:
        tried.append(candidate)
        return candidate == SECRET

    for attempt in range(3):
        shares = split(SECRET, 5, range(1, 10))
        shares[1] = secrets.token_bytes(32)
        reconstruct(shares, 5, is_right, wrong)
        assert wrong == {1}
        assert len(tried) == 2 + attempt
