"""What coordinator and root do while the server runs: runs, rosters, and rounds that a gate holds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.aggregator.support.driver import STEPS, Seat, drive, take_seats
from tests.aggregator.support.federations import (
    ARCHITECTURE,
    MANIFESTS,
    Federation,
    identity_of,
    theta_0,
    to_safetensors,
)
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, until

from fedddpm_aggregator.cli.round_tables import rounds_table
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.rosters import initialise, install_roster
from fedddpm_aggregator.service.administration.run_settings import RunSettings
from fedddpm_aggregator.service.administration.runs import end_run
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.vectors.model_files import read_model
from fedddpm_protocol.agreement.roster import Member, sign_roster
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.phases import Phase

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database


def seats_of(site: Site) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site), "decoder")


def without(federation: Federation, name: str) -> tuple[Member, ...]:
    return tuple(member for member in federation.roster.members if member.id != name)


def test_a_run_started_beside_the_server_begins_within_a_second(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    site = serve(federation)
    before = site["a"].state()
    assert (before.status, before.run, before.spec) == ("waiting", None, None)
    federation.start_run(rounds=1)
    state = until(site, lambda state: state.spec is not None)
    assert (state.status, state.run, state.round, state.rounds) == ("running", "run-1", 0, 1)
    assert state.version > before.version


def test_a_new_roster_restarts_an_attempt_that_waits_for_joins(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_of(site)[:3], ["join"])
    federation.install(members=without(federation, "d"), c_max=0)
    until(site, lambda state: state.attempt == 1)
    site.institutions.pop("d").close()
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)


@pytest.mark.parametrize("steps", [2, 3], ids=["sharing", "uploaded"])
def test_a_roster_that_removes_a_cohort_member_ends_the_session(
    new_federation: NewFederation, serve: Serve, steps: int
) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_of(site), STEPS[:steps])
    federation.install(members=without(federation, "d"), c_max=0)
    until(site, lambda state: state.attempt == 1)
    site.institutions.pop("d").close()
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)


def test_a_new_member_does_not_disturb_a_running_session(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:2])
    added = (*federation.roster.members, Member("e", identity_of("e").public_key))
    federation.install(members=added)
    until(site, lambda state: state.roster_version == 2)
    drive(seats, STEPS[2:])
    check_part(site, 0, seats)
    state = until(site, lambda state: state.round == 1)
    assert set(seats_of(site)[0].machine.plan.reporters) == set("abcde")
    assert state.attempt == 0


def test_after_confirming_a_removed_member_does_not_stop_the_sum(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:4])
    until(site, lambda state: state.sessions["decoder"].phase is Phase.UNMASK)
    federation.install(members=without(federation, "d"), c_max=0)
    until(site, lambda state: state.roster_version == 2)
    drive(seats[:3], STEPS[4:])
    check_part(site, 0, seats)


def test_an_unclipped_update_holds_the_round_until_a_newer_roster(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, clip_norm=0.05)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:2])
    for seat in seats:
        seat.encode_unchecked(np.full(43, 2**27, np.uint32))
        for segment, index in seat.chunks:
            seat.put(segment, index)
        seat.finish()
    drive(seats, STEPS[3:])
    state = until(site, lambda state: state.status == "stalled")
    assert "held" in (state.reason or "")
    assert "did not clip" in (state.reason or "")
    assert state.results == 0
    federation.install()
    assert until(site, lambda state: state.attempt == 1).status == "running"


def test_a_weight_that_was_not_disclosed_holds_the_round(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, weighting="disclosed")
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:2])
    seats[0].mask()
    seats[0].samples += 1000
    for segment, index in seats[0].chunks:
        seats[0].put(segment, index)
    seats[0].finish()
    drive(seats[1:], ["upload"])
    drive(seats, STEPS[3:])
    state = until(site, lambda state: state.status == "stalled")
    assert "disclosed" in (state.reason or "")


def test_an_ended_run_stops_in_the_middle_of_a_round(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=5)
    site = serve(federation)
    drive(seats_of(site), STEPS[:3])
    with federation.context() as ctx:
        assert end_run(ctx) == "run-1"
        with pytest.raises(OperatorError, match="no run to end"):
            end_run(ctx)
    state = until(site, lambda state: state.status == "finished")
    assert state.sessions["decoder"].phase is Phase.FAILED
    federation.start_run(name="run-2", scale=2)
    assert until(site, lambda state: state.run == "run-2" and state.spec is not None).status == "running"


def test_overview_tells_cohort_survivors_and_sums(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats)
    until(site, lambda state: state.status == "finished")
    with federation.context() as ctx:
        (line,) = overview(ctx)
        with pytest.raises(OperatorError, match="no run called"):
            overview(ctx, "other")
    assert (line.round, line.attempt, line.part, line.phase) == (0, 0, "decoder", "done")
    assert line.cohort == line.survivors == tuple("abcd")
    assert line.sums[0] == sum(seat.samples for seat in seats)


def refused(federation: Federation, match: str, model: Path | None = None, **changes: object) -> None:
    settings = RunSettings(**{"name": "run-1", "method": "UDEC", "rounds": 2, **changes})  # type: ignore[arg-type]
    with federation.context() as ctx, pytest.raises(OperatorError, match=match):
        federation.start(ctx, settings, model or federation.write_theta_0())


def test_runs_that_cannot_be_started_say_why(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    refused(federation, r"USPLIT gives each part to half.*Enrol at least 6", method="USPLIT", weighting="equal")
    refused(federation, "choose one of FULL", method="HALF")
    refused(federation, "unknown weighting", weighting="secret")
    refused(federation, "below the roster's n_min", min_cohort=2)
    refused(federation, "the roster has 4 members and 5 must take part", min_cohort=5)
    refused(federation, "multiples of 8", chunk_coordinates=12)
    refused(federation, "blocks of 32.*a multiple of 4096", chunk_coordinates=32)
    refused(federation, "blocks of 8 .*--bits 32", chunk_coordinates=1000, bits=8, first_bits=32)
    for bits in (5, 7, 33, 0, -8):
        refused(federation, f"--bits {bits} is no ring.*4, 6, 8, 12, 16, 20, 24, 32", bits=bits)
        refused(federation, f"--first-bits {bits} is no ring", first_bits=bits)
    refused(federation, "--first-bits 8 is narrower than --bits 16", bits=16, first_bits=8)
    refused(federation, "take 4194560 bytes.*lower --chunk-coordinates", chunk_coordinates=2**20 + 64, bits=4)
    refused(federation, "clip norm", clip_norm=0.0)
    refused(federation, "must be 1 to 64 letters", name="no spaces")
    refused(federation, "cannot be read", model=tmp_path / "missing")
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    refused(federation, "is not a model file", model=tmp_path / "noise")
    values = theta_0()
    values[3] = np.nan
    (tmp_path / "nan").write_bytes(to_safetensors(ARCHITECTURE, MANIFESTS, values))
    refused(federation, "NaN or infinity", model=tmp_path / "nan")
    partial = {"encoder": MANIFESTS["encoder"]}
    (tmp_path / "partial").write_bytes(to_safetensors(ARCHITECTURE, partial, theta_0(partial)))
    refused(federation, "three parts", model=tmp_path / "partial")
    federation.start_run()
    refused(federation, "'run-1' goes on", name="run-2")


def test_a_base_is_used_by_one_run_only(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=2)
    with federation.context() as ctx:
        end_run(ctx)  # before any attempt: nobody saw the model
    federation.start_run(name="run-2", rounds=2)
    site = serve(federation)
    drive(seats_of(site))
    until(site, lambda state: state.round == 1)
    with federation.context() as ctx:
        first, second = overview(ctx)
        end_run(ctx)
    refused(federation, "run 'run-2' has used.*fedddpm init-model --seed", name="run-3")
    refused(federation, "run 'run-2' has used", name="run-3", model=continued(federation, str(first.model)))
    assert second.base_model == first.model
    assert second.model is None
    federation.start_run(name="run-3", method="FULL")  # other parts are another base
    until(site, lambda state: state.run == "run-3" and state.spec is not None)


def continued(federation: Federation, model: str) -> Path:
    """theta_0 with the decoder of a published model."""
    values = theta_0()
    with federation.context() as ctx:
        shared = read_model(ctx.blobs, model, MANIFESTS["decoder"])
    values[-shared.size :] = shared
    path = federation.folder / "continued.safetensors"
    path.write_bytes(to_safetensors(ARCHITECTURE, MANIFESTS, values))
    return path


def test_the_last_model_of_a_run_may_begin_another(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_of(site))
    until(site, lambda state: state.status == "finished")
    with federation.context() as ctx:
        (line,) = overview(ctx)
        path = continued(federation, str(line.model))
        federation.start(ctx, RunSettings(name="run-2", method="UDEC", rounds=1, bits=32), path)
    assert until(site, lambda state: state.run == "run-2" and state.spec is not None).status == "running"


def test_usplit_wants_disclosed_or_equal_counts(new_federation: NewFederation) -> None:
    federation = new_federation(members=tuple("abcdef"), c_max=0)
    refused(federation, "USPLIT cannot hide sample counts", method="USPLIT", weighting="hidden")
    refused(federation, "choose one of adaptive, fixed", clip="wild")


def test_rosters_that_must_not_come_into_force(new_federation: NewFederation) -> None:
    federation = new_federation()
    first = sign_roster(federation.roster, federation.root)
    federation.install()

    def refuse(match: str, root: SigningKey = federation.root, **changes: object) -> None:
        fields = {"version": 3, **changes}
        document = sign_roster(replace(federation.roster, **fields), root)  # type: ignore[arg-type]
        with federation.context() as ctx, pytest.raises(OperatorError, match=match):
            install_roster(ctx, document)

    refuse("not signed by the pinned root key", root=SigningKey.generate())
    refuse("names another aggregator key", server_public_key=bytes(32))
    refuse("another roster of version 2", version=2, c_max=0)
    refuse("belongs to federation 'test'", federation="other")
    with federation.context() as ctx:
        with pytest.raises(OperatorError, match="rosters never go back"):
            install_roster(ctx, first)
        install_roster(ctx, sign_roster(federation.roster, federation.root))  # the same again
        with pytest.raises(OperatorError, match="never changes its root key"):
            initialise(ctx, SigningKey.generate().public_key)


def test_the_table_of_rounds_shows_what_was_opened(
    new_federation: NewFederation, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_of(site))
    until(site, lambda state: state.status == "finished")
    with federation.context() as ctx:
        Console(width=200).print(rounds_table(overview(ctx)))
    shown = capsys.readouterr().out
    assert "4 of 4: a, b, c, d" in shown
    assert re.search(r"^ *1 +1 +decoder +10 +done ", shown, re.MULTILINE)  # rounds and attempts from 1
    assert "0.5000" in shown  # the driver's loss before
    assert "0.2500" in shown
