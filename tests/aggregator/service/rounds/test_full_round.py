"""Whole rounds over real HTTP: every method's sessions, on both databases."""

from __future__ import annotations

import numpy as np
import pytest
from tests.aggregator.support.driver import drive, spec_of, take_seats
from tests.aggregator.support.federations import read_safetensors, theta_0
from tests.aggregator.support.sites import NewFederation, Serve
from tests.aggregator.support.watching import base_of, check_part, first_state, opened_part, result_of

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.encoding.decoder import derive_model, next_model
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.phases import Phase


@pytest.mark.parametrize("method", [Method.FULL, Method.ULATDEC, Method.UDEC])
def test_two_rounds_publish_the_exact_mean(new_federation: NewFederation, serve: Serve, method: Method) -> None:
    federation = new_federation()
    federation.start_run(method, rounds=2)
    site = serve(federation)
    (part,) = method.sessions
    for round_index in range(2):
        state = first_state(site, round_index)
        assert (state.round, state.attempt) == (round_index, 0)
        spec = spec_of(state, federation.roster)
        base_vector = base_of(site, spec)
        seats = take_seats(site.institutions.values(), federation.roster, state, part)
        drive(seats)
        check_part(site, round_index, seats)
        result = result_of(site, round_index)
        following = next_model(spec, base_vector, {part: opened_part(result.parts[0], spec, seats)})
        assert result.model_hash == model_hash(spec.base_manifest, following)
        weights = np.array([min(seat.samples, 65535) for seat in seats], float)
        mean = sum(w * seat.delta.astype(float) for w, seat in zip(weights, seats, strict=True)) / weights.sum()
        np.testing.assert_allclose(following - base_vector, mean, atol=0.02)
    assert site["a"].state().status == "finished"


def test_first_base_is_cut_from_theta_0(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(Method.UDEC)
    site = serve(federation)
    spec = spec_of(first_state(site), federation.roster)
    whole = read_safetensors(site["a"].send("GET", f"/v1/models/{spec.initial_model_hash.hex()}").content)
    base = read_safetensors(site["a"].send("GET", f"/v1/models/{spec.base_model_hash.hex()}").content)
    assert set(base) == {"decoder.a", "decoder.b"}
    assert set(whole) == {"encoder.a", "encoder.b", "bottleneck.a", "decoder.a", "decoder.b"}
    np.testing.assert_array_equal(whole["decoder.b"], base["decoder.b"])
    np.testing.assert_array_equal(base["decoder.b"].reshape(-1), theta_0()[-13:])


@pytest.mark.parametrize("weighting", ["equal", "disclosed"])
def test_usplit_sums_every_part_over_its_reporters(new_federation: NewFederation, serve: Serve, weighting: str) -> None:
    federation = new_federation(members=tuple("abcdef"), c_max=0)
    federation.start_run(Method.USPLIT, rounds=1, weighting=weighting)
    site = serve(federation)
    state = first_state(site)
    seats = {
        part: take_seats(site.institutions.values(), federation.roster, state, part) for part in Method.USPLIT.sessions
    }
    assert all(len(seated) >= 3 for seated in seats.values())
    for seated in seats.values():
        drive(seated)
    for seated in seats.values():
        check_part(site, 0, seated)
    assert canonical.encode(result_of(site, 0))


def test_usplit_part_that_fails_keeps_its_base(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation(members=tuple("abcdef"), c_max=0)
    federation.start_run(Method.USPLIT, rounds=2, weighting="equal", shares_s=4.0)
    site = serve(federation)
    state = first_state(site)
    spec = spec_of(state, federation.roster)
    seats = {
        part: take_seats(site.institutions.values(), federation.roster, state, part) for part in Method.USPLIT.sessions
    }
    drive(seats["encoder"], ["join"])
    seats["encoder"][0].share()
    drive(seats["bottleneck"])
    drive(seats["decoder"])
    result = result_of(site, 0)
    assert [(part.part, part.opened) for part in result.parts] == [
        ("encoder", False),
        ("bottleneck", True),
        ("decoder", True),
    ]
    published = read_safetensors(site["a"].send("GET", f"/v1/models/{result.model_hash.hex()}").content)
    first = read_safetensors(site["a"].send("GET", f"/v1/models/{spec.base_model_hash.hex()}").content)
    np.testing.assert_array_equal(published["encoder.a"], first["encoder.a"])
    assert not np.array_equal(published["decoder.a"], first["decoder.a"])
    assert first_state(site, 1).sessions["encoder"].phase is Phase.JOIN


def test_parts_in_turn_are_summed_one_a_round_and_the_others_keep_their_base(
    new_federation: NewFederation, serve: Serve
) -> None:
    federation = new_federation(members=tuple("abc"), c_max=0)
    federation.start_run(Method.TURN, rounds=3, turns="decoder,encoder,bottleneck")
    site = serve(federation)
    for round_index, part in enumerate(("decoder", "encoder", "bottleneck")):
        state = first_state(site, round_index)
        assert list(state.sessions) == [f"turn-{part}"]
        spec = spec_of(state, federation.roster)
        assert spec.turn == f"turn-{part}"
        seats = take_seats(site.institutions.values(), federation.roster, state, spec.turn)
        drive(seats)
        check_part(site, round_index, seats)
        result = result_of(site, round_index)
        assert [(one.part, one.opened) for one in result.parts] == [(spec.turn, True)]
        models = [
            read_safetensors(site["a"].send("GET", f"/v1/models/{digest.hex()}").content)
            for digest in (spec.base_model_hash, result.model_hash)
        ]
        moved = {name.partition(".")[0] for name in models[0] if not np.array_equal(models[0][name], models[1][name])}
        assert moved == {part}
    with federation.context() as ctx:
        assert verify_history(ctx)


@pytest.mark.parametrize("method", [Method.FULL, Method.TURN])
def test_momentum_moves_the_base_beyond_the_averaged_model_and_the_run_ends_with_this(
    new_federation: NewFederation, serve: Serve, method: Method
) -> None:
    federation = new_federation(members=tuple("abc"), c_max=0)
    federation.start_run(method, rounds=4, outer_learning_rate=0.8, outer_momentum=0.5)
    site = serve(federation)
    averaged = None
    for round_index in range(4):
        state = first_state(site, round_index)
        spec = spec_of(state, federation.roster)
        (part,) = state.sessions
        base = base_of(site, spec)
        seats = take_seats(site.institutions.values(), federation.roster, state, part)
        drive(seats)
        result = result_of(site, round_index)
        following = derive_model(spec, base, {part: opened_part(result.parts[0], spec, seats)}, averaged)
        averaged = following.averaged
        assert averaged is not None
        assert result.model_hash == model_hash(spec.base_manifest, following.base)
        assert result.averaged_hash == model_hash(spec.base_manifest, averaged)
        assert (result.averaged_hash == result.model_hash) == (round_index == 3)
        for digest in (result.model_hash, result.averaged_hash):  # for who comes late
            assert site["a"].send("GET", f"/v1/models/{digest.hex()}").status_code == 200
    with federation.context() as ctx:
        assert verify_history(ctx)["models derived anew"] == 4


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        (Method.TURN, {"turns": "decoder,encoder"}, "never the turn of turn-bottleneck"),
        (Method.TURN, {"rounds": 2}, "in 2 rounds it is never the turn of turn-decoder"),
        (Method.TURN, {"turns": "decoder,head"}, "unknown turn 'turn-head'"),
        (Method.UDEC, {"turns": "decoder"}, "UDEC has no turns"),
        (Method.UDEC, {"outer_momentum": 0.5}, "it goes with FULL or TURN, not with UDEC"),
        (Method.FULL, {"outer_momentum": 0.95}, "would move further than 10 times what clipped updates can"),
    ],
)
def test_turns_that_leave_a_part_out_are_not_signed(
    new_federation: NewFederation, method: Method, options: dict[str, object], why: str
) -> None:
    federation = new_federation(members=tuple("abc"), c_max=0)
    with pytest.raises(OperatorError, match=why):
        federation.start_run(method, **{"rounds": 3, **options})
