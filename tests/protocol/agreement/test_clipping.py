"""The adaptive clip norm: where it binds, where it does not, and that nobody can shrink it away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from tests.protocol.support.specs import make_result, make_spec

from fedddpm_protocol.agreement.clipping import FLOOR, next_clip_norm, norms_allowed
from fedddpm_protocol.agreement.result import PartResult, RoundResult

LARGEST, ROUNDS = 100.0, 60
COHORTS, COSINES = (3, 10, 100), (0.05, 0.1, 0.3, 0.6, 0.9)
Lie = Callable[[np.ndarray, float, int], np.ndarray]  # sum of the others, clip norm, round -> what is sent


def directions(n: int, cosine: float) -> np.ndarray:
    """Unit vectors [n, n + 1] of which any two have this cosine."""
    common = np.zeros((1, n + 1))
    common[0, 0] = 1
    own = np.eye(n, n + 1, 1)
    return math.sqrt(cosine) * common + math.sqrt(1 - cosine) * own


class Run:
    """Rounds with equal weights: members send updates of these norms, clipped; the first may lie."""

    def __init__(self, n: int, cosine: float, norms: Sequence[float]) -> None:
        self.wanted = directions(n, cosine) * np.asarray(norms)[:, None]
        self.first: dict[str, float] = {}
        self.clip, self.clips, self.share = LARGEST, [LARGEST], 0.0

    def round(self, lie: Lie | None = None) -> None:
        norms = np.linalg.norm(self.wanted, axis=1)
        factors = np.minimum(1, self.clip / np.maximum(norms, 1e-300))
        sent = self.wanted * factors[:, None]
        if lie is not None:
            sent[0] = lie(sent[1:].sum(axis=0), self.clip, len(self.clips))
            assert np.linalg.norm(sent[0]) <= self.clip * (1 + 1e-9)
        total = sent.sum(axis=0)
        square = float(total @ total)
        self.share = float(sent[0] @ total) / square if square else 0.0
        newest = {"full": math.sqrt(square / len(sent))}
        self.first = self.first or newest
        self.clip = next_clip_norm(LARGEST, self.first, newest)
        self.clips.append(self.clip)

    def rounds(self, count: int = ROUNDS, lie: Lie | None = None) -> Run:
        for _ in range(count):
            self.round(lie)
        return self


@pytest.mark.parametrize("cosine", [0.0, *COSINES])
@pytest.mark.parametrize("n", [2, *COHORTS])
def test_equals_are_never_clipped(n: int, cosine: float) -> None:
    run = Run(n, cosine, np.ones(n)).rounds()
    assert min(run.clips) >= 1 - 1e-9
    assert run.share == pytest.approx(1 / n)


@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("n", COHORTS)
@pytest.mark.parametrize("size", [10.0, 50.0])
def test_one_that_dwarfs_the_others_is_clipped_to_their_measure(n: int, cosine: float, size: float) -> None:
    norms = np.ones(n)
    norms[0] = size
    run = Run(n, cosine, norms)
    run.round()
    before = run.share
    run.rounds()
    assert run.share <= 1 / math.sqrt(n) + 1e-6 or run.clip == FLOOR * run.clips[1]
    assert run.share <= before
    assert run.clip >= 1  # nobody else is
    if n == 3:
        assert before > 0.8
        assert run.share < before
        assert run.clip < size / 2


@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("n", COHORTS)
@pytest.mark.parametrize("tiny", [0.0, 1e-6, 0.1])
def test_tiny_updates_do_not_freeze_the_others(n: int, cosine: float, tiny: float) -> None:
    """One of ten does not even slow them down; one of three does, and only so far."""
    norms = np.ones(n)
    norms[: max(1, n // 10)] = tiny
    clips = Run(n, cosine, norms).rounds().clips
    assert min(clips) >= (1 - 1e-9 if n > 3 or cosine >= 0.5 else 0.2)


def against_the_others(others: np.ndarray, clip: float, _: int) -> np.ndarray:
    """As near as it can to nothing at all."""
    return -others * min(1.0, clip / np.linalg.norm(others))


def with_the_others(others: np.ndarray, clip: float, _: int) -> np.ndarray:
    return others * clip / np.linalg.norm(others)


def now_and_then(others: np.ndarray, clip: float, number: int) -> np.ndarray:
    return with_the_others(others, clip, number) * (1 if number % 2 else -1)


@pytest.mark.parametrize("lie", [against_the_others, with_the_others, now_and_then])
@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("n", COHORTS)
def test_a_member_that_lies_neither_freezes_training_nor_takes_it_over(n: int, cosine: float, lie: Lie) -> None:
    run = Run(n, cosine, np.ones(n))
    run.round()
    run.rounds(lie=lie)
    assert min(run.clips) >= FLOOR * run.clips[1] * (1 - 1e-9)
    assert run.share <= 1 / math.sqrt(n) + 1e-6 or lie is now_and_then
    if n == 100:
        assert min(run.clips) >= 1  # one in a hundred does not even slow the others down
    run.rounds(40)
    assert run.clip >= 1  # and when it has gone


def test_a_lie_in_the_first_round_passes() -> None:
    """Whoever begins with the largest update that there may be sets the floor, and no more."""
    run = Run(3, 0.3, np.ones(3))
    run.round(with_the_others)
    assert run.clip > 50
    run.rounds(20)
    assert run.clip == pytest.approx(run.clips[1] * FLOOR)
    assert run.share == pytest.approx(1 / 3)


# --- from signed results ------------------------------------------------------------------------------------------


def part(name: str, survivors: str, norm: float) -> PartResult:
    digest, ids = bytes(32), tuple(survivors)
    return PartResult(name, True, digest, digest, ids, ids, (65535 * len(ids), 0, 0), digest, norm)


def result_of(*parts: PartResult) -> RoundResult:
    return make_result(make_spec(), parts=parts)


def test_norms_follow_from_each_part_and_all_its_shards() -> None:
    result = result_of(part("encoder", "abc", 0.5), part("decoder", "abcd", 2.0), PartResult.not_opened("x"))
    allowed = norms_allowed(result)
    assert allowed == pytest.approx({"encoder": 0.5 * math.sqrt(3), "decoder": 4.0})
    assert next_clip_norm(10.0, allowed, allowed) == pytest.approx(math.sqrt(0.75 + 16))
    sharded = result_of(part("full.0", "abc", 3.0), part("full.1", "defg", 1.0))
    assert norms_allowed(sharded) == pytest.approx({"full": math.sqrt((81 + 16) / 7)})


def test_the_largest_clip_norm_holds_until_something_is_known() -> None:
    nothing = norms_allowed(result_of(part("full", "abc", 0.0)))
    some = {"full": 3.0}
    assert next_clip_norm(7.0, {}, {}) == 7.0
    assert next_clip_norm(7.0, nothing, nothing) == 7.0
    assert next_clip_norm(2.0, some, some) == 2.0
    assert next_clip_norm(7.0, some, some) == 3.0
    assert next_clip_norm(7.0, some, nothing) == 3.0 / 4
    assert next_clip_norm(7.0, {"full": 1e5}, nothing) == 7.0 / 4


def test_what_a_part_gave_last_counts_where_it_was_not_opened_again() -> None:
    first = norms_allowed(result_of(part("encoder", "abc", 0.5), part("decoder", "abc", 1.0)))
    second = norms_allowed(result_of(part("encoder", "abc", 0.25), PartResult.not_opened("decoder")))
    assert next_clip_norm(10.0, first, first | second) == pytest.approx(math.sqrt(3) * math.hypot(0.25, 1.0))


def test_a_result_is_all_that_counts() -> None:
    result = result_of(part("full", "abc", 1.0))
    assert norms_allowed(replace(result, model_hash=bytes([1]) * 32, attempt=3)) == norms_allowed(result)


def test_the_sum_over_parts_is_the_same_on_every_python() -> None:
    """The built-in sum of floats is compensated from 3.12 on; the clip norm is a term that must not depend on it."""
    norms = {"encoder": 0.1, "bottleneck": 1.3, "decoder": 1.3}
    exact = sum(Fraction(norm * norm) for norm in norms.values())
    assert next_clip_norm(10.0, norms, norms) == math.sqrt(float(exact))
    assert math.sqrt(0.1 * 0.1 + 1.3 * 1.3 + 1.3 * 1.3) != math.sqrt(float(exact))  # a plain sum is another number
