"""Shamir secret sharing over GF(2^8) with the AES polynomial 0x11b, byte by byte (Shamir 1979).

The secret is the constant term; share ``x`` is the polynomial at the non-zero point ``x``. Reconstruction corrects
wrong shares by Berlekamp-Welch; whether it succeeded is for the caller's commitment to say.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.errors import CommitmentError

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


def combine(shares: Mapping[int, bytes], at: int = 0) -> bytes:
    """The polynomial through all ``shares``, at 0 or another point (Lagrange); right only if every share is."""
    total = np.zeros(len(next(iter(shares.values()))), np.uint8)
    for x, share in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = multiply(weight, multiply(other ^ at, inverse(other ^ x)))
        total ^= _PRODUCTS[np.frombuffer(share, np.uint8), weight]
    return total.tobytes()


def reconstruct(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool], wrong: set[int] | None = None
) -> bytes:
    """The secret behind ``shares``, up to ``(len(shares) - threshold) // 2`` of which may be wrong.

    ``is_right`` compares a candidate with its commitment. Points in ``wrong`` are used last, and those found wrong are
    added to it, so that one liar is searched for once and not again for every secret. CommitmentError if nothing
    matches.
    """
    liars: set[int] = set() if wrong is None else wrong
    left = {x: shares[x] for x in sorted(shares, key=lambda x: x in liars)}
    found: set[int] = set()
    while len(left) >= threshold:
        first = dict(list(left.items())[:threshold])
        secret = combine(first)
        if is_right(secret):
            liars |= found
            return secret
        strangers = _wrong_points(left, first, threshold)
        if not strangers:
            raise CommitmentError("too many shares are wrong: no reconstruction matches the commitment")
        found |= strangers
        left = {x: share for x, share in left.items() if x not in strangers}
    raise CommitmentError(f"{len(left)} shares that may be right are fewer than the threshold {threshold}")


def _wrong_points(shares: Mapping[int, bytes], first: Mapping[int, bytes], threshold: int) -> set[int]:
    """Points off the nearest polynomial in the first byte position where the shares do not lie on one."""
    rest = [x for x in shares if x not in first]
    off = np.zeros(len(next(iter(shares.values()))), bool)
    for x in rest:
        off |= np.frombuffer(combine(first, x), np.uint8) != np.frombuffer(shares[x], np.uint8)
    positions = np.flatnonzero(off)
    if not len(positions):
        return set()
    points = list(shares)
    return _berlekamp_welch(points, [shares[x][positions[0]] for x in points], threshold)


def _berlekamp_welch(points: Sequence[int], values: Sequence[int], threshold: int) -> set[int]:
    """Points where ``values`` differ from the nearest polynomial of degree < threshold; empty if none is near."""
    errors = (len(points) - threshold) // 2
    # Q(x) = y E(x) with E monic of degree `errors` and Q of degree < errors + threshold.
    rows = []
    for x, y in zip(points, values, strict=True):
        powers = [1]
        for _ in range(errors + threshold):
            powers.append(multiply(powers[-1], x))
        row = powers[: errors + threshold] + [multiply(y, power) for power in powers[:errors]]
        rows.append([*row, multiply(y, powers[errors])])
    solution = _solve(rows, 2 * errors + threshold)
    if solution is None:
        return set()
    numerator, locator = solution[: errors + threshold], [*solution[errors + threshold :], 1]
    polynomial = _quotient(numerator, locator)
    if polynomial is None:
        return set()
    return {x for x, y in zip(points, values, strict=True) if _evaluate(polynomial, x) != y}


def _evaluate(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for term in reversed(polynomial):
        value = multiply(value, x) ^ term
    return value


def _solve(rows: list[list[int]], unknowns: int) -> list[int] | None:
    """One solution of the linear system (free unknowns 0), by Gaussian elimination; None if there is none."""
    pivots: list[int] = []
    for column in range(unknowns):
        pivot = next((index for index in range(len(pivots), len(rows)) if rows[index][column]), None)
        if pivot is None:
            continue
        rank = len(pivots)
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        scale = inverse(rows[rank][column])
        rows[rank] = [multiply(scale, value) for value in rows[rank]]
        for index, row in enumerate(rows):
            if index != rank and row[column]:
                factor = row[column]
                rows[index] = [value ^ multiply(factor, lead) for value, lead in zip(row, rows[rank], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    solution = [0] * unknowns
    for index, column in enumerate(pivots):
        solution[column] = rows[index][-1]
    return solution


def _quotient(numerator: Sequence[int], divisor: Sequence[int]) -> list[int] | None:
    """numerator / divisor (lowest power first, monic divisor), or None if it does not divide."""
    rest = list(numerator)
    quotient = [0] * max(1, len(rest) - len(divisor) + 1)
    for shift in range(len(rest) - len(divisor), -1, -1):
        factor = rest[shift + len(divisor) - 1]
        quotient[shift] = factor
        for index, value in enumerate(divisor):
            rest[shift + index] ^= multiply(factor, value)
    return None if any(rest) else quotient
