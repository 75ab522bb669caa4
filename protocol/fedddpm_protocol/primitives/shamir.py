"""Shamir secret sharing over GF(2^8) with the AES polynomial 0x11b, byte by byte (Shamir 1979).

The secret is the constant term; share ``x`` is the polynomial at the non-zero point ``x``. Which shares are right is
for the commitments of their dealer to say, and not looked for here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

RandomBytes = Callable[[int], bytes]


def _tables() -> tuple[list[int], list[int]]:
    exponentials, logarithms, value = [0] * 510, [0] * 256, 1
    for power in range(255):
        exponentials[power] = exponentials[power + 255] = value
        logarithms[value] = power
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)  # times the generator 3
        value &= 0xFF
    return exponentials, logarithms


_EXP, _LOG = _tables()


def multiply(left: int, right: int) -> int:
    """Product in GF(2^8)."""
    return _EXP[_LOG[left] + _LOG[right]] if left and right else 0


def inverse(value: int) -> int:
    """Multiplicative inverse in GF(2^8); ZeroDivisionError for 0."""
    if not value:
        raise ZeroDivisionError("0 has no inverse in GF(2^8)")
    return _EXP[255 - _LOG[value]]


_PRODUCTS: npt.NDArray[np.uint8] = np.array(
    [[multiply(left, right) for right in range(256)] for left in range(256)], np.uint8
)


def split(
    secret: bytes, threshold: int, points: Sequence[int], random_bytes: RandomBytes = secrets.token_bytes
) -> dict[int, bytes]:
    """Shares of ``secret`` at ``points`` (distinct, 1 to 255), any ``threshold`` of which give it back.

    Coefficients are drawn for x^1 first, ``len(secret)`` bytes each.
    """
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or not all(0 < x < 256 for x in points):
        raise ValueError(f"cannot split into {len(points)} shares with threshold {threshold}")
    terms = [np.frombuffer(secret, np.uint8)]
    terms += [np.frombuffer(random_bytes(len(secret)), np.uint8) for _ in range(threshold - 1)]
    shares: dict[int, bytes] = {}
    for x in points:
        value = np.zeros(len(secret), np.uint8)
        for term in reversed(terms):  # Horner's rule
            value = _PRODUCTS[value, x] ^ term
        shares[x] = value.tobytes()
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind ``shares`` (Lagrange at 0); right only if every share is, and as many as the threshold."""
    total = np.zeros(len(next(iter(shares.values()))), np.uint8)
    for x, share in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = multiply(weight, multiply(other, inverse(other ^ x)))
        total ^= _PRODUCTS[np.frombuffer(share, np.uint8), weight]
    return total.tobytes()
