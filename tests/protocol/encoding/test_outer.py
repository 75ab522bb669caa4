"""The outer step: Nesterov's momentum over opened means, the same bits for everybody, and no step beyond at the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_part_result, make_result, make_spec
from tests.protocol.support.sums import opened_part, summed

from fedddpm_protocol.agreement.charter import charter_rows
from fedddpm_protocol.agreement.lineage import NO_RESULTS, require_averaged, require_follows
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Vector, model_hash
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.agreement.terms import OuterOptimizer
from fedddpm_protocol.encoding.decoder import NextModel, OpenedPart, advance_model, derive_model
from fedddpm_protocol.encoding.outer import with_mean
from fedddpm_protocol.encoding.rederivation import averaged_hash, follow_fetched, follow_result
from fedddpm_protocol.errors import ResultError

ROSTER = make_roster(5, 1)
WEIGHTS = [40000, 50000, 60000]
KNOWN = [  # hashes of base and averaged model after each of two rounds
    ("919491a5d1106797", "28882d9dfd4a708a"),
    ("eb0e71c9be57b08c", "ac96d6ef3f7b6341"),
]
OUTER = OuterOptimizer(0.7, 0.6)


def specs(rounds: int, outer: OuterOptimizer = OUTER, bits: int = 32) -> list[RoundSpec]:
    spec = make_spec(bits=bits)
    return [
        replace(spec, round=index, rounds=rounds, outer=outer, previous_result=b"p" * 32 if index else b"")
        for index in range(rounds)
    ]


def sums(spec: RoundSpec, seed: int, share: float = 0.1) -> dict[str, OpenedPart]:
    generator, opened = np.random.default_rng(seed), {}
    for index, part in enumerate(spec.parts):
        size = part.parameters
        deltas = [generator.normal(0, share * spec.clip_norm / size**0.5, size).astype(np.float32) for _ in WEIGHTS]
        words = summed(spec, deltas, WEIGHTS, part=index)
        opened[part.name] = opened_part(spec, words, (sum(WEIGHTS), 10, 10), len(WEIGHTS), part=index)
    return opened


def model_of(spec: RoundSpec, seed: int = 5) -> Vector:
    size = sum(part.parameters for part in spec.parts)
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def signed(spec: RoundSpec, following: NextModel, opened: dict[str, OpenedPart]) -> RoundResult:
    parts = tuple(
        make_part_result(
            part=part.name,
            cohort=opened[part.name].cohort,
            survivors=opened[part.name].survivors,
            sums=opened[part.name].sums,
            norm=following.norms[part.name],
        )
        if part.name in opened
        else PartResult.not_opened(part.name)
        for part in spec.parts
    )
    hashes = {"model_hash": model_hash(spec.base_manifest, following.base)}
    return make_result(spec, parts=parts, averaged_hash=averaged_hash(spec, following), **hashes)


def test_it_is_sgd_with_nesterov_momentum_over_the_means() -> None:
    """Against the textbook's recursion with a momentum buffer, in float64."""
    rounds = specs(4)
    base, averaged = model_of(rounds[0]), None
    theirs, buffer = base.astype(np.float64), np.zeros(len(base))
    for index, spec in enumerate(rounds):
        opened = sums(spec, index)
        plain = replace(spec, outer=OuterOptimizer())
        mean = derive_model(plain, np.zeros_like(base), opened).base.astype(np.float64)
        buffer = OUTER.momentum * buffer + mean
        if spec.is_last:  # the run ends where the mean led, without the look ahead
            theirs = theirs + OUTER.learning_rate * mean
        else:
            theirs = theirs + OUTER.learning_rate * (mean + OUTER.momentum * buffer)
        following = derive_model(spec, base, opened, averaged)
        base, averaged = following.base, following.averaged
        np.testing.assert_allclose(base, theirs, rtol=0, atol=2e-6)
    assert averaged is not None
    assert base.tobytes() == averaged.tobytes()


def test_without_momentum_there_is_no_averaged_model() -> None:
    (spec,) = specs(1, OuterOptimizer(0.5, 0.0))
    base, opened = model_of(spec), sums(spec, 1)
    whole = derive_model(replace(spec, outer=OuterOptimizer()), base, opened).base
    following = derive_model(spec, base, opened)
    assert following.averaged is None
    assert averaged_hash(spec, following) == b""
    np.testing.assert_allclose(following.base - base, 0.5 * (whole - base), rtol=0, atol=1e-6)
    np.testing.assert_allclose(with_mean(spec, base, following.base), whole, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="an averaged model goes with outer momentum"):
        advance_model(spec, base.copy(), opened, base.copy())


def test_a_signed_result_is_followed_with_both_models() -> None:
    first, second = specs(3)[:2]
    base = model_of(first)
    one = derive_model(first, base, sums(first, 1))
    opened = sums(second, 2)
    two = derive_model(second, one.base, opened, one.averaged)
    result = signed(second, two, opened)
    followed = follow_result(second, result, one.base, opened, one.averaged)
    assert followed.base.tobytes() == two.base.tobytes()
    assert followed.averaged is not None
    assert two.averaged is not None
    assert followed.averaged.tobytes() == two.averaged.tobytes()
    with pytest.raises(ResultError, match="the averaged model that follows from the sums"):
        follow_result(second, replace(result, averaged_hash=b"z" * 32), one.base, opened, one.averaged)
    with pytest.raises(ResultError, match="the model that follows from the sums"):  # another history
        follow_result(second, result, one.base, opened, one.base)


def test_a_base_model_follows_from_a_fetched_averaged_one() -> None:
    first, second = specs(3)[:2]
    one = derive_model(first, model_of(first), sums(first, 1))
    opened = sums(second, 2)
    two = derive_model(second, one.base, opened, one.averaged)
    result = signed(second, two, opened)
    assert two.averaged is not None
    fetched = follow_fetched(second, result, one.base, two.averaged, one.averaged)
    assert fetched.base.tobytes() == two.base.tobytes()
    with pytest.raises(ResultError, match="the model that follows from the averaged models"):
        follow_fetched(second, replace(result, model_hash=b"m" * 32), one.base, two.averaged, one.averaged)
    # A signed model further away than the mean of clipped updates is refused, though its hash is the signed one.
    far = NextModel(two.base, one.base + np.float32(100) * (two.averaged - one.base), two.norms)
    assert far.averaged is not None
    with pytest.raises(ResultError, match="moved part 'full'"):
        follow_fetched(second, signed(second, far, opened), one.base, far.averaged, one.averaged)


def test_the_bound_on_a_move_is_that_of_the_learning_rate() -> None:
    """What clipped updates move at most, times the outer learning rate and no more."""
    spec = replace(specs(2, OuterOptimizer(0.5, 0.5))[0])
    base = model_of(spec)
    all_alike = {"full": sums_that_agree(spec)}
    following = derive_model(spec, base, all_alike)
    assert following.averaged is not None
    follow_fetched(spec, signed(spec, following, all_alike), base, following.averaged)
    twice = NextModel(following.base, base + 2 * (following.averaged - base), following.norms)
    assert twice.averaged is not None
    with pytest.raises(ResultError, match="moved part 'full'"):
        follow_fetched(spec, signed(spec, twice, all_alike), base, twice.averaged)


def sums_that_agree(spec: RoundSpec) -> OpenedPart:
    size = spec.parts[0].parameters
    delta = np.full(size, spec.clip_norm / size**0.5, np.float32) * np.float32(0.999)
    return opened_part(spec, summed(spec, [delta] * 3, WEIGHTS), (sum(WEIGHTS), 10, 10), 3)


def test_parts_in_turn_come_home_in_the_last_round() -> None:
    rounds = specs_in_turn()
    base, averaged = model_of(rounds[0]), None
    for index, spec in enumerate(rounds):
        opened = {spec.turn: sums(spec, index)[spec.turn]}
        following = derive_model(spec, base, opened, averaged)
        before, base, averaged = base, following.base, following.averaged
        for part, here in spec.places:
            assert averaged is not None
            if part.name == spec.turn or spec.is_last:
                assert (base[here] != before[here]).any()
            else:
                assert base[here].tobytes() == before[here].tobytes()
    assert averaged is not None
    assert base.tobytes() == averaged.tobytes()  # also of the parts whose turn it was not


def specs_in_turn() -> list[RoundSpec]:
    spec = make_spec(scheme=Method.TURN)
    names = [part.name for part in spec.parts]
    return [
        replace(
            spec, round=index, rounds=4, outer=OUTER, turn=names[index % 3], previous_result=b"p" * 32 * bool(index)
        )
        for index in range(4)
    ]


@pytest.mark.parametrize(
    ("learning_rate", "momentum", "why"),
    [
        (0.0, 0.0, r"an outer learning rate of 0 is outside \[0.01, 1\]"),
        (0.009, 0.0, "far below it no mean can be told from the model"),
        (1.5, 0.0, "above 1 the model leaves what clipped updates span"),
        (float("nan"), 0.0, "an outer learning rate of nan"),
        (1.0, 0.95, "would move further than 10 times what clipped updates can"),
        (1.0, -0.1, "an outer momentum of -0.1"),
        (1.0, float("nan"), "an outer momentum of nan"),
    ],
)
def test_what_the_clip_bound_cannot_hold_is_no_outer_optimizer(learning_rate: float, momentum: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        OuterOptimizer(learning_rate, momentum)


@pytest.mark.parametrize("method", [Method.UDEC, Method.ULATDEC, Method.USPLIT])
def test_it_goes_with_methods_that_end_with_one_model(method: Method) -> None:
    with pytest.raises(ValueError, match=f"it goes with FULL or TURN, not with {method}"):
        replace(make_spec(scheme=method), outer=OUTER, terms_hash=b"")
    with pytest.raises(ValueError, match=f"it goes with FULL or TURN, not with {method}"):
        chartered(make_spec(scheme=method), outer=OUTER)


def test_charters_without_it_keep_their_bytes_and_those_with_it_say_so() -> None:
    plain, _ = chartered(make_spec())
    moved, _ = chartered(make_spec(), outer=OUTER)
    assert chartered(make_spec(), outer=OuterOptimizer())[0].hash == plain.hash != moved.hash
    assert "outer step" not in dict(charter_rows(plain))
    assert dict(charter_rows(moved))["outer step"] == "0.7 times the mean update, momentum 0.6 (Nesterov)"


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_results_name_an_averaged_model_exactly_with_momentum(momentum: float) -> None:
    outer = OuterOptimizer(1.0, momentum)
    charter, spec = chartered(replace(make_spec(), round=0, rounds=3, previous_result=b""), outer=outer)
    require_follows(spec, charter, NO_RESULTS, ROSTER)  # before the first result there is none
    right = replace(make_result(spec), averaged_hash=b"z" * 32 * bool(momentum))
    require_averaged(right, charter)
    with pytest.raises(ResultError, match="averaged model, with an outer momentum of"):
        require_averaged(replace(right, averaged_hash=b"" if momentum else b"z" * 32), charter)
    if momentum:
        last = replace(right, round=2, previous_result=b"p" * 32)
        require_averaged(replace(last, averaged_hash=last.model_hash), charter)
        with pytest.raises(ResultError, match="does not end with its averaged model"):
            require_averaged(last, charter)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_without_momentum_a_fetched_model_is_the_signed_one_too(rate: float) -> None:
    """A result that names a second model within the bound, which whoever fetches would take for the signed one."""
    (spec,) = specs(1, OuterOptimizer(rate, 0.0))
    base, opened = model_of(spec), sums(spec, 1)
    following = derive_model(spec, base, opened)
    result = signed(spec, following, opened)
    assert follow_fetched(spec, result, base, following.base).base is following.base
    surplus = replace(result, model_hash=b"m" * 32, averaged_hash=result.model_hash)
    with pytest.raises(ResultError, match="the model that follows from the fetched one"):
        follow_fetched(spec, surplus, base, following.base)
    surplus = replace(result, averaged_hash=b"z" * 32)
    with pytest.raises(ResultError, match="the averaged model that follows from the fetched one"):
        follow_fetched(spec, surplus, base, following.base)
    with pytest.raises(ResultError, match="the averaged model that follows from the sums"):
        follow_result(spec, surplus, base, opened)


@pytest.mark.parametrize("last", [False, True])
def test_a_part_that_was_not_opened_stays_where_both_models_were(last: bool) -> None:
    """Fetched or from sums: base and averaged model keep their own values, and the last round brings them together."""
    first, second = specs_in_turn()[1:3] if not last else specs_in_turn()[2:]
    one = derive_model(first, model_of(first), {first.turn: sums(first, 1)[first.turn]}, model_of(first, 6))
    opened = {second.turn: sums(second, 2)[second.turn]}
    two = derive_model(second, one.base, opened, one.averaged)
    result = signed(second, two, opened)
    assert one.averaged is not None
    assert two.averaged is not None
    fetched = follow_fetched(second, result, one.base, two.averaged, one.averaged)
    assert fetched.base.tobytes() == two.base.tobytes()
    here = next(here for part, here in second.places if part.name == first.turn)
    assert two.averaged[here].tobytes() == one.averaged[here].tobytes()
    assert two.base[here].tobytes() == (one.averaged if last else one.base)[here].tobytes()
    wrong = two.averaged.copy()
    wrong[here] = one.base[here]  # the base model's values in the place of the averaged one's
    with pytest.raises(ResultError, match=f"moved part '{first.turn}'"):
        follow_fetched(second, result, one.base, wrong, one.averaged)


def test_both_models_have_the_same_bits_everywhere() -> None:
    """Known answers: of two rounds, base and averaged model."""
    base, averaged, found = model_of(specs(3, bits=24)[0]), None, []
    for index, spec in enumerate(specs(3, bits=24)[:2]):
        following = derive_model(spec, base, sums(spec, index), averaged)
        base, averaged = following.base, following.averaged
        found.append(tuple(model_hash(spec.base_manifest, one).hex()[:16] for one in (base, averaged)))
    assert found == KNOWN
