"""Linear combinations modulo a prime: what follows from equations, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PRIME = 2**61 - 1


def echelon(rows: Iterable[Sequence[int]]) -> list[list[int]]:
    """The reduced echelon form, without zero rows."""
    left = [[value % PRIME for value in row] for row in rows]
    done: list[list[int]] = []
    for column in range(len(left[0]) if left else 0):
        pivot = next((row for row in left if row[column]), None)
        if pivot is None:
            continue
        left.remove(pivot)
        scale = pow(pivot[column], -1, PRIME)
        lead = [value * scale % PRIME for value in pivot]
        left = [_without(row, lead, column) for row in left]
        done = [_without(row, lead, column) for row in done]
        done.append(lead)
    return done


def _without(row: list[int], lead: list[int], column: int) -> list[int]:
    factor = row[column]
    return row if not factor else [(value - factor * other) % PRIME for value, other in zip(row, lead, strict=True)]
