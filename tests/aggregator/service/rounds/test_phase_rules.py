"""Deadlines and quorum, as pure rules."""

from __future__ import annotations

import pytest

from fedddpm_aggregator.service.rounds.phase_rules import (
    PhaseView,
    Verdict,
    decide,
    may_form,
    no_answer_can_come,
    worth_opening,
)
from fedddpm_protocol.wire.phases import Phase


def view(
    done: str, *, expected: str = "abcd", elapsed: float = 1, needed: int = 3, phase: Phase = Phase.MASKED
) -> PhaseView:
    return PhaseView(phase, elapsed, 10, frozenset(expected), frozenset(done), needed)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (view("abcd"), Verdict.CLOSE),  # everybody: at once
        (view("abc"), Verdict.WAIT),  # enough, but the fourth may still come
        (view("abc", elapsed=10), Verdict.CLOSE),
        (view("ab"), Verdict.WAIT),
        (view("ab", elapsed=10), Verdict.FAIL),
        (view("ab", expected="ab"), Verdict.FAIL),  # the others joined again: nobody is left to wait for
        (view("abc", expected="ab"), Verdict.CLOSE),  # c did its part, then lost its secrets
    ],
)
def test_when_a_phase_closes(seen: PhaseView, verdict: Verdict) -> None:
    assert decide(seen).verdict is verdict


@pytest.mark.parametrize(
    ("seen", "over"),
    [
        (view("abc", phase=Phase.JOIN), False),  # enough, but the fourth may still come
        (view("abcd", phase=Phase.JOIN), True),
        (view("abc", elapsed=10, phase=Phase.JOIN), True),
        (view("a", elapsed=99, phase=Phase.JOIN), True),  # whether these are enough, the cohort says
        (view("ab", expected="ab", phase=Phase.JOIN), True),
    ],
)
def test_when_a_cohort_is_tried(seen: PhaseView, over: bool) -> None:
    assert may_form(seen) is over


def test_a_failure_names_who_is_missing() -> None:
    assert decide(view("ab", elapsed=10)).reason == ("masked ended with 2 of 3 needed members; not heard of: c, d")


@pytest.mark.parametrize(
    ("seen", "waited", "worth"),
    [
        (view("ab"), 99.0, False),
        (view("abc"), None, False),
        (view("abc"), 0.5, False),
        (view("abc"), 1.0, True),
        (view("abc", elapsed=10), 0.1, True),
        (view("abcd"), 0.0, True),
        (view("abc", expected="abc"), 0.0, True),
    ],
)
def test_when_a_sum_is_opened(seen: PhaseView, waited: float | None, worth: bool) -> None:
    assert worth_opening(seen, waited, grace_s=1.0) is worth


def test_when_no_answer_can_come_any_more() -> None:
    assert not no_answer_can_come(view("abc"))
    assert no_answer_can_come(view("abcd"))
    assert no_answer_can_come(view("a", elapsed=10))
    assert no_answer_can_come(view("a", expected="ab"))
