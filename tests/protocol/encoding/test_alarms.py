"""When alarms ring over a run's results, and when not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from tests.protocol.support.specs import make_part_result, make_result, make_spec

from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import LOSS_UNITS
from fedddpm_protocol.encoding.alarms import LOSS, NORM, REMEMBERED, Alarm, AlarmWatch, alarms_of

IDS = tuple(f"site-{number}" for number in range(9))


def part(loss: float = 0.5, norm: float = 1.0, n: int = 4, session: str = "full") -> PartResult:
    sums = (n * 65535, round(n * loss * LOSS_UNITS), 0)
    return make_part_result(part=session, cohort=IDS[:n], survivors=IDS[:n], sums=sums, norm=norm)


def results(rounds: Sequence[Sequence[PartResult]]) -> list[RoundResult]:
    previous = b"\x03" * 32
    return [
        make_result(make_spec(), round=index, parts=tuple(parts), previous_result=previous if index else b"")
        for index, parts in enumerate(rounds)
    ]


def rung(rounds: Sequence[Sequence[PartResult]]) -> list[tuple[str, int]]:
    return [(alarm.kind, alarm.round) for alarm in alarms_of(results(rounds))]


def by_losses(*losses: float) -> list[tuple[str, int]]:
    return rung([[part(loss)] for loss in losses])


def by_norms(*norms: float) -> list[tuple[str, int]]:
    return rung([[part(norm=norm)] for norm in norms])


# --- losses -----------------------------------------------------------------------------------------------------------


def test_three_worse_rounds_running_ring_with_the_result_that_tells_of_the_third() -> None:
    assert by_losses(0.5, 0.4, 0.41, 0.42, 0.45) == [(LOSS, 4)]
    assert by_losses(0.4, 0.41, 0.42, 0.45, 0.46, 0.4) == [(LOSS, 3), (LOSS, 4)]


@pytest.mark.parametrize("losses", [(0.4, 0.5, 0.6), (0.4, 0.5, 0.6, 0.6), (0.4, 0.5, 0.45, 0.6, 0.7), (1, 0.9, 0.8)])
def test_fewer_do_not(losses: tuple[float, ...]) -> None:
    assert by_losses(*losses) == []


def test_a_loss_that_has_settled_moves_up_and_down_for_ever() -> None:
    assert by_losses(0.04, 0.0401, 0.0405, 0.0409) == []
    assert by_losses(0.04, 0.0401, 0.0405, 0.0425) == [(LOSS, 3)]


def test_small_steps_in_one_direction_ring_as_well() -> None:
    """Each three of them are below what is let through."""
    assert by_losses(*(0.04 * 1.015**step for step in range(6))) == [(LOSS, 4), (LOSS, 5)]


def test_rounds_without_losses_are_left_out() -> None:
    """With USPLIT the decoder may not be opened, and losses stand in no other sum."""
    told = [[part(loss, session="decoder")] for loss in (0.4, 0.41, 0.42, 0.45)]
    silent = [part(9.0, session="encoder")]
    assert rung([*told[:2], silent, *told[2:], silent]) == [(LOSS, 4)]


def test_losses_of_shards_count_as_of_one_sum() -> None:
    shards = [[part(loss, session="full.0"), part(0.1, session="full.1")] for loss in (0.4, 0.41, 0.42, 0.48)]
    assert rung(shards) == [(LOSS, 3)]
    assert str(alarms_of(results(shards))[0]) == (
        "the mean held-out loss became worse 3 rounds running: 0.2500 -> 0.2550 -> 0.2600 -> 0.2900,"
        " from before round 1 to before round 4"
    )


# --- norms ------------------------------------------------------------------------------------------------------------


def test_a_mean_of_more_than_one_and_a_half_medians_rings() -> None:
    assert by_norms(1.0, 1.2, 0.8, 1.6) == [(NORM, 3)]
    assert by_norms(1.0, 1.2, 0.8, 1.5) == []
    (alarm,) = alarms_of(results([[part(norm=norm)] for norm in (1.0, 1.2, 0.8, 1.6)]))
    assert (
        str(alarm)
        == "the mean update of round 4 in part full has norm 1.6, 1.6 times the median 1 of the rounds before"
    )


def test_not_before_three_means_are_known() -> None:
    assert by_norms(1.0, 9.0, 9.0) == []


def test_the_median_is_of_the_last_rounds() -> None:
    """Updates become smaller: what was usual at the start says nothing later on."""
    falling = [8.0] * 5 + [1.0] * REMEMBERED
    assert by_norms(*falling, 1.6) == [(NORM, len(falling))]
    assert by_norms(*falling) == []


def test_one_spoiler_does_not_move_the_median() -> None:
    assert [kind for kind, _ in by_norms(1.0, 1.0, 1.0, 3.0, 3.0, 3.0)] == [NORM] * 3


@pytest.mark.parametrize(("before", "after"), [(9, 3), (3, 9)])
def test_another_number_of_institutions_alone_rings_nothing(before: int, after: int) -> None:
    """The mean of n updates that have nothing in common is shorter by the root of n, that of equal ones is not."""
    for agree in (0.0, 0.5, 1.0):
        means = [part(norm=math.sqrt(agree + (1 - agree) / n), n=n) for n in (before, before, before, after)]
        assert rung([[mean] for mean in means]) == []
    large = part(norm=2.0, n=after)
    assert rung([*([part(norm=1.0, n=before)] for _ in range(3)), [large]]) == ([(NORM, 3)] if after > 3 else [])


def test_parts_are_watched_by_themselves() -> None:
    rounds = [[part(norm=1.0, session="decoder"), part(norm=9.0, session="encoder")] for _ in range(3)]
    assert rung([*rounds, [part(norm=2.0, session="decoder")]]) == [(NORM, 3)]


def test_the_longest_mean_of_a_part_with_shards_counts() -> None:
    quiet = [[part(norm=1.0, session="full.0"), part(norm=1.0, session="full.1")] for _ in range(3)]
    assert rung([*quiet, [part(norm=1.0, session="full.0"), part(norm=2.0, session="full.1")]]) == [(NORM, 3)]


def test_means_of_nothing_ring_once_there_is_one() -> None:
    assert by_norms(0.0, 0.0, 0.0, 0.0) == []
    assert by_norms(0.0, 0.0, 0.0, 0.1) == [(NORM, 3)]


# --- following --------------------------------------------------------------------------------------------------------


def test_whoever_goes_on_from_a_file_rings_the_same() -> None:
    random = np.random.default_rng(3)
    chain = results([[part(float(random.uniform(0.1, 0.9)), float(random.lognormal()))] for _ in range(60)])
    watch, found = AlarmWatch(), list[Alarm]()
    for result in chain:
        watch = AlarmWatch.from_json(watch.to_json())
        found += watch.follow(result)
        assert AlarmWatch.from_json(watch.to_json()).newest == watch.newest
    assert found == alarms_of(chain)
    assert {alarm.kind for alarm in found} == {LOSS, NORM}
    assert len(watch.to_json()) < 2000


def test_a_result_that_comes_again_counts_once() -> None:
    chain = results([[part(loss)] for loss in (0.4, 0.41, 0.42, 0.45)])
    watch = AlarmWatch()
    for result in (*chain[:2], chain[1], chain[1], *chain[2:]):
        rings = watch.follow(result)
    assert [alarm.kind for alarm in rings] == [LOSS]
