"""Rounds of more members than one sum holds, with small shards: one sum a shard, one model."""

from __future__ import annotations

import numpy as np
import pytest
from tests.aggregator.support.driver import Seat, drive, spec_of, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import base_of, check_part, first_state, opened_part, result_of, until

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.roster_files import new_draw
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.service.history.traffic import round_traffic
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.roster import Roster, Sharding
from fedddpm_protocol.agreement.shards import draw, sessions_of
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import next_model
from fedddpm_protocol.wire.phases import Phase

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database

MEMBERS = tuple(f"m{index:02}" for index in range(10))
SHARDS = (Sharding(4, 0, bytes(range(32)), "a test"),)


def sharded(new_federation: NewFederation, **fields: object) -> Federation:
    return new_federation(**{"members": MEMBERS, "c_max": 0, "sharding": SHARDS, **fields})


def seats_by_session(site: Site, roster: Roster, method: Method = Method.UDEC) -> dict[str, list[Seat]]:
    state = first_state(site)
    everybody = site.institutions.values()
    return {session: take_seats(everybody, roster, state, session) for session in sessions_of(method, roster)}


def check_model(site: Site, spec: RoundSpec, base: np.ndarray, opened: dict[str, list[Seat]]) -> None:
    """The published model is the mean over the members of all opened shards."""
    result = result_of(site, spec.round)
    parts = {part.part: part for part in result.parts}
    sums = {session: opened_part(parts[session], spec, seats) for session, seats in opened.items()}
    following = next_model(spec, base, sums)
    assert result.model_hash == model_hash(spec.base_manifest, following)
    everybody = [seat for seats in opened.values() for seat in seats]
    weights = np.array([seat.samples for seat in everybody], float)
    mean = sum(w * seat.delta.astype(float) for w, seat in zip(weights, everybody, strict=True)) / weights.sum()
    np.testing.assert_allclose(following - base, mean, atol=0.02)


def test_two_rounds_over_three_shards(new_federation: NewFederation, serve: Serve) -> None:
    federation = sharded(new_federation)
    federation.start_run(rounds=2)
    site = serve(federation)
    assert [len(shard) for shard in draw(federation.roster)] == [4, 3, 3]
    for round_index in range(2):
        state = first_state(site, round_index)
        assert sorted(state.sessions) == ["decoder.0", "decoder.1", "decoder.2"]
        spec = spec_of(state, federation.roster)
        assert spec.largest_cohort == 4
        base, seats = base_of(site, spec), seats_by_session(site, federation.roster)
        for seated in seats.values():
            drive(seated)
        for seated in seats.values():
            check_part(site, round_index, seated)
        check_model(site, spec, base, seats)
    assert until(site, lambda state: state.status == "finished").results == 2
    with federation.context() as ctx:
        traffic = round_traffic(ctx)[1]
        lines = overview(ctx)
    words = 4 * spec.parts[0].parameters
    assert traffic.down == len(MEMBERS) * words  # the next model, which is smaller than three sums
    assert len(lines) == 6
    assert {line.part for line in lines} == set(state.sessions)


def test_a_shard_that_fails_leaves_the_others_their_round(new_federation: NewFederation, serve: Serve) -> None:
    federation = sharded(new_federation)
    federation.start_run(rounds=2, shares_s=4.0)
    site = serve(federation)
    spec = spec_of(first_state(site), federation.roster)
    base, seats = base_of(site, spec), seats_by_session(site, federation.roster)
    drive(seats["decoder.1"], ("join",))  # and are not heard of again
    opened = {session: seats[session] for session in ("decoder.0", "decoder.2")}
    for seated in opened.values():
        drive(seated)
    check_model(site, spec, base, opened)
    failed = next(part for part in result_of(site, 0).parts if part.part == "decoder.1")
    assert not failed.opened
    assert first_state(site, 1).sessions["decoder.1"].phase is Phase.JOIN


def test_shards_that_nobody_fills_do_not_wait_for_each_other(new_federation: NewFederation, serve: Serve) -> None:
    federation = sharded(new_federation)
    federation.start_run(rounds=2, join_s=1.0)
    site = serve(federation)
    spec = spec_of(first_state(site), federation.roster)
    base, seats = base_of(site, spec), seats_by_session(site, federation.roster)
    drive(seats["decoder.0"][:2], ("join",))
    drive(seats["decoder.1"])
    check_model(site, spec, base, {"decoder.1": seats["decoder.1"]})
    parts = {part.part: part.opened for part in result_of(site, 0).parts}
    assert parts == {"decoder.0": False, "decoder.1": True, "decoder.2": False}


def test_usplit_draws_its_reporters_in_every_shard(new_federation: NewFederation, serve: Serve) -> None:
    members = tuple(f"m{index:02}" for index in range(12))
    federation = sharded(new_federation, members=members, sharding=(Sharding(6, 0, bytes(32), "a test"),))
    federation.start_run(Method.USPLIT, rounds=1, weighting="equal")
    site = serve(federation)
    seats = seats_by_session(site, federation.roster, Method.USPLIT)
    assert len(seats) == 6
    for seated in seats.values():
        drive(seated)
    for seated in seats.values():
        check_part(site, 0, seated)


def test_narrow_rings_are_sized_by_the_shard_with_the_largest_mean(new_federation: NewFederation, serve: Serve) -> None:
    federation = sharded(new_federation)
    federation.start_run(rounds=2, bits=16, first_bits=24, chunk_coordinates=4096)
    site = serve(federation)
    for seated in seats_by_session(site, federation.roster).values():
        drive(seated)
    parts = result_of(site, 0).parts
    (part,) = spec_of(first_state(site, 1), federation.roster).parts
    assert part.values.bits == 16
    assert part.reference == max((one.reference for one in parts), key=lambda reference: reference.norm)


def test_runs_that_shards_are_too_small_for(new_federation: NewFederation) -> None:
    federation = sharded(new_federation, sharding=(new_draw(3, 0),), members=MEMBERS)
    with pytest.raises(OperatorError, match="2 members of the smallest shard"):
        federation.start_run()
    federation.install(sharding=(new_draw(5, 0),))
    with pytest.raises(OperatorError, match="half of the 5 members of the smallest shard"):
        federation.start_run(Method.USPLIT, weighting="equal")
