"""Sums of losses: what an aggregator can compute of one institution's loss from those of several attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest

from fedddpm_protocol.agreement.methods import (
    DECODER,
    ENCODER,
    MODEL_PARTS,
    TURNS,
    Method,
    assign_parts,
    reports_losses,
)

MEMBERS = tuple("abcdefg")  # seven: a draw gives one of encoder and decoder to three of them, the other to four
DRAWS = [assign_parts(bytes([number]) * 32, MEMBERS) for number in range(24)]


def histories(reports: Callable[[str], bool]) -> Iterator[list[tuple[str, ...]]]:
    """Sets whose losses are opened in two attempts on one base; SPENT: those of one part are equal or disjoint."""
    for first, second in product(DRAWS, repeat=2):
        for chosen in product((False, True), repeat=len(MODEL_PARTS)):
            sums = [first[part] for part, now in zip(MODEL_PARTS, chosen, strict=True) if now and reports(part)]
            for part, now in zip(MODEL_PARTS, chosen, strict=True):
                if reports(part) and (not now or set(first[part]) in (set(second[part]), set())):
                    sums.append(second[part])
            yield sums


def isolates(sums: list[tuple[str, ...]]) -> bool:
    """Whether somebody's loss alone is a combination of sums."""
    rows = np.array([[member in group for member in MEMBERS] for group in sums], float).reshape(-1, len(MEMBERS))
    rank = np.linalg.matrix_rank(rows)
    return any(np.linalg.matrix_rank(np.vstack((rows, unit))) == rank for unit in np.eye(len(MEMBERS)))


def both_halves(session: str) -> bool:
    """The rule as it was: losses in all sums but that of the bottleneck."""
    return session in (ENCODER, DECODER)


@pytest.mark.parametrize(
    ("rule", "shows"), [(reports_losses, False), (both_halves, True), (lambda session: True, True)]
)
def test_losses_of_two_attempts_show_nobody_unless_two_parts_report_them(
    rule: Callable[[str], bool], shows: bool
) -> None:
    assert any(isolates(sums) for sums in histories(rule) if sums) is shows


@pytest.mark.parametrize("method", Method)
def test_every_method_reports_losses_in_one_of_its_sums(method: Method) -> None:
    for turn in TURNS if method is Method.TURN else ("",):
        assert sum(map(reports_losses, method.summed_in(turn))) == 1
        assert sum(reports_losses(f"{session}.3") for session in method.summed_in(turn)) == 1  # of a shard
