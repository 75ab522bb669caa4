"""Linear combinations of masked words in which nothing unknown is left, modulo a large prime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from tests.support.elimination import echelon


@dataclass(frozen=True)
class Row:
    """One upload: the masks in it that are not known, with their signs, and the column of what its member put in."""

    unknown: dict[Hashable, int]
    column: Hashable | None  # None: zeros


def peeled(rows: Iterable[Row]) -> list[Row]:
    """Without the rows that can be in no such combination, since a mask of theirs is in no other row."""
    left = list(rows)
    while True:
        number = Counter(mask for row in left for mask in row.unknown)
        kept = [row for row in left if all(number[mask] > 1 for mask in row.unknown)]
        if len(kept) == len(left):
            return left
        left = kept


def opened(rows: Iterable[Row], columns: Sequence[Hashable]) -> list[list[int]]:
    """Reduced generators, by ``columns``, of all combinations of rows in which no unknown mask is left."""
    left = peeled(rows)
    masks = list({mask: None for row in left for mask in row.unknown})
    table = [
        [*(row.unknown.get(mask, 0) for mask in masks), *(int(column == row.column) for column in columns)]
        for row in left
    ]
    free = [row[len(masks) :] for row in echelon(table) if not any(row[: len(masks)])]
    return echelon(free)


def spans(generators: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> bool:
    """Whether every one of ``rows`` is a combination of ``generators``."""
    return len(echelon([*generators, *rows])) == len(echelon(generators))
