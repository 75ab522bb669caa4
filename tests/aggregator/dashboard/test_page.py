"""What the operator's page says of rounds, members, failures and runs."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update
from tests.aggregator.dashboard.pages import lose_secrets, page_text, seats_in
from tests.aggregator.support.driver import STEPS, drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation, Serve
from tests.aggregator.support.watching import first_state, until

from fedddpm_aggregator.dashboard.reasons import advice_on
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import ModelRow
from fedddpm_aggregator.service.administration.runs import pause_run
from fedddpm_protocol.agreement.roster import Sharding


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_before_everything_the_page_names_the_next_step(tmp_path: Path, serve: Serve) -> None:
    federation = Federation(tmp_path)
    site = serve(federation)
    assert "no run is open; next: the root signs one (fedddpm-aggregator federation sign-run)" in page_text(site)
    assert "4 in roster version 1" in page_text(site)


def test_the_page_follows_a_round(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats[:2], ["join"])
    text = page_text(site)
    assert "Round 1 of 2 running" in text
    assert "Training and joining 2 of 4 institutions at least 3 are needed" in text
    assert "Not heard of yet: c, d" in text
    drive(seats[2:], ["join"])
    drive(seats[:3], ["share"])
    text = page_text(site)
    assert "Sharing keys 3 of 4 institutions" in text
    assert "a sent its shares within a minute 0" in text
    assert "d awaited" in text
    drive(seats[3:], ["share"])
    drive(seats, STEPS[2:])
    until(site, lambda state: state.results == 1)
    text = page_text(site)
    assert "1 of 2 rounds published" in text
    assert "4 of 4" in text
    assert "0.5000 0.2500" in text  # mean losses of the sum, before and after


def test_who_dropped_is_told_beside_the_member_and_the_round(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats, STEPS[:2])
    lose_secrets(site, "d")
    drive(seats[:3], STEPS[2:])
    until(site, lambda state: state.results == 1)
    text = page_text(site)
    assert re.search(r"d not joined yet within a minute 0 round 1", text), text
    assert re.search(r"\d s 3 of 4 d 0\.5000", text), text


def test_a_failed_attempt_is_explained(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_in(site), ["join"])
    lose_secrets(site, "cd")
    until(site, lambda state: state.attempt == 1)
    text = page_text(site)
    assert "Round 1, attempt 1, decoder So many institutions restarted or left" in text
    assert "What to do. Another attempt starts by itself." in text
    assert "Recorded reason: only 2 members are left in shares, 3 are needed" in text


def test_a_paused_run_says_how_it_goes_on(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    first_state(site)
    with federation.context() as ctx:
        pause_run(ctx)
    text = page_text(site)
    assert "Round 1 of 1 paused" in text
    assert "federation resume-run" in text


def test_reasons_of_the_program_are_known() -> None:
    """Every way a session can fail has words of its own."""
    general = advice_on("something new")
    for reason in (
        "shares ended with 2 of 3 needed members; not heard of: c, d",
        "masked ended with 2 of 3 needed members; not heard of: c",
        "confirm ended with 2 of 3 needed members; not heard of: c",
        "2 of 3 needed UNMASK answers came; not heard of: c",
        "only 2 members are left in masked, 3 are needed",
        "the sum cannot be opened: wrong shares",
        "the mean update of part 'decoder' has norm 11, above the agreed 10: an institution did not clip its update. "
        "The round is held and the model stays as it is",
        "the sum of part 'decoder' is larger than its ring of 8 bits was made for and is not used; the next attempt",
        "roster version 2 is in force",
        "roster version 2 removes a member of the cohort or raises c_max",
        "the coordinator ended the run",
        "2 members joined, this run waits for 3, and the other parts of the round are over",
        "waiting for members: 2 members joined, this run waits for 3. Not heard of: c",
        "the roster has 2 members and 3 must take part; enrol more, or lower --min-cohort",
        "This base model is spent on the sum of a, b, c: these members go on only together.",
    ):
        assert advice_on(reason) != general, reason


def test_shards_are_told_one_by_one(tmp_path: Path, serve: Serve) -> None:
    shards = (Sharding(4, 0, bytes(range(32)), "a test"),)
    federation = Federation(tmp_path, members=tuple("abcdefgh"), c_max=0, sharding=shards)
    federation.start_run(rounds=2)
    site = serve(federation)
    state = first_state(site)
    seats = {
        session: take_seats(site.institutions.values(), federation.roster, state, session)
        for session in ("decoder.0", "decoder.1")
    }
    drive(seats["decoder.0"], STEPS[:2])
    text = page_text(site)
    assert "decoder Training and joining 0 of 2 shards opened" in text
    assert "decoder.0 Uploading masked updates 0 of 4 3" in text
    assert "decoder.1 Training and joining 0 of 4 3" in text
    drive(seats["decoder.0"], STEPS[2:])
    drive(seats["decoder.1"])
    until(site, lambda state: state.results == 1)
    assert "8 of 8" in page_text(site)


def test_parts_are_told_one_by_one(tmp_path: Path, serve: Serve) -> None:
    federation = Federation(tmp_path, members=tuple("abcdefgh"), c_max=0)
    federation.start_run("USPLIT", rounds=1, weighting="equal")
    site = serve(federation)
    state = first_state(site)
    seats = take_seats(site.institutions.values(), federation.roster, state, "encoder")
    drive(seats, ["join"])
    text = page_text(site)
    assert "encoder Sharing keys 0 of 4 institutions" in text
    assert "bottleneck Training and joining 0 of 4 institutions" in text
    assert f"{seats[0].name} awaited" in text or f"{seats[0].name} not joined yet" in text


def test_a_model_that_is_kept_no_longer_is_not_offered(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=2)
    site = serve(federation)
    first_state(site)
    assert "Model after the start" in page_text(site)
    with federation.context() as ctx, ctx.transaction() as db:
        db.execute(update(ModelRow).values(removed_at=1.0))
        queries.bump_version(db)
    text = page_text(site)
    assert "Model after the start" not in text
    assert "kept no longer" in text


def test_runs_can_be_chosen_and_old_rounds_read(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(seats_in(site))
    until(site, lambda state: state.status == "finished")
    federation.start_run(rounds=1, name="run-2", scale=0.5)
    until(site, lambda state: state.run == "run-2" and state.spec is not None)
    assert "No round of run run-2 is published yet" in page_text(site)
    text = page_text(site, "?run=run-1")
    assert "run run-1 : 1 of 1 rounds published" in text
    assert "Back to the current round" in text
    assert httpx.get(f"{site.url}/?run=nothing", trust_env=False).status_code == 404
    old = page_text(site, "?run=run-1&before=1")
    assert "The newest rounds" in old
    assert "The newest rounds" not in text
    assert "Published rounds, the newest first" in old
