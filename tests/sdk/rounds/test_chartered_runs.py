"""Nothing is trained that the root has not signed; charters do not come back; one run at a time; approval at home."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_spec

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.errors import PolicyError, StateError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.rounds.chartered_runs import CharteredRuns
from fedddpm.rounds.rollback_check import WentBackError
from fedddpm.rounds.run_history import RunHistory
from fedddpm.state.charter_book import CharterBook, approve_newest, read_newest
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm_protocol.agreement.charter import Charter, sign_charter
from fedddpm_protocol.errors import CharterError, SignatureError
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.messages import SignedDocument

ROOT = SigningKey.generate()
ROSTER = make_roster(3)
FIRST, _ = chartered(make_spec(ROSTER))
SECOND = replace(FIRST, number=2, run="run-2")


class NoResults(RunHistory):
    """A history at an aggregator that tells of no results beyond those that were taken."""

    done = 0

    def rounds_done(self, position: RunPosition, roster: Any) -> int:
        return max(self.done, position.next_round)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path / "state", ROOT.public_key, "site-0") as opened:
        yield opened


@pytest.fixture
def history(state: StateFolder) -> NoResults:
    return NoResults(state, None, None, None, lambda results: None, LearningOptions(), LocalPolicyOptions())  # type: ignore[arg-type]  # asks nobody here


def runs(state: StateFolder, history: NoResults, *, must_approve: bool = False) -> CharteredRuns:
    return CharteredRuns(state, ROOT.public_key, history, Reporter(), must_approve=must_approve)


def signed(charter: Charter) -> SignedDocument:
    return sign_charter(charter, ROOT)


def stands_at(state: StateFolder, charter: Charter, next_round: int) -> None:
    digest = b"x" * 32
    finished = next_round >= charter.rounds
    state.move_to(RunPosition(charter.run, charter.method, next_round, digest, digest, digest, "m", finished))


def test_a_run_without_a_charter_is_refused_in_one_line(state: StateFolder, history: NoResults) -> None:
    with pytest.raises(CharterError, match=r"run run-9 has no charter.*sign-run") as refused:
        runs(state, history).accept(None, "run-9", ROSTER)
    assert "\n" not in str(refused.value)


def test_only_the_root_signs(state: StateFolder, history: NoResults) -> None:
    with pytest.raises(SignatureError, match="federation's root"):
        runs(state, history).accept(sign_charter(FIRST, SigningKey.generate()), "run-1", ROSTER)
    assert CharterBook(state).newest is None


def test_another_federations_charter_is_refused(state: StateFolder, history: NoResults) -> None:
    with pytest.raises(CharterError, match="elsewhere"):
        runs(state, history).accept(signed(replace(FIRST, federation="elsewhere")), "run-1", ROSTER)


def test_old_charters_do_not_come_back(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history)
    assert ours.accept(signed(FIRST), "run-1", ROSTER) == FIRST
    assert ours.accept(signed(FIRST), "run-1", ROSTER) == FIRST
    assert ours.accept(signed(SECOND), "run-2", ROSTER) == SECOND
    for again in (ours, runs(state, history)):  # and after a restart
        with pytest.raises(WentBackError, match=r"charter 1 .* is older than charter 2"):
            again.accept(signed(FIRST), "run-1", ROSTER)


@pytest.mark.parametrize("other", [replace(FIRST, rounds=4), replace(FIRST, run="run-3"), replace(FIRST, number=2)])
def test_a_number_and_a_run_stand_for_one_charter(state: StateFolder, history: NoResults, other: Charter) -> None:
    """Also the root signs only one: two would be two trainings on one base."""
    ours = runs(state, history)
    ours.accept(signed(FIRST), "run-1", ROSTER)
    with pytest.raises(CharterError, match="two different charters"):
        ours.accept(signed(other), other.run, ROSTER)


def test_a_second_run_beside_one_is_refused(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history)
    ours.accept(signed(FIRST), "run-1", ROSTER)
    stands_at(state, FIRST, 2)
    with pytest.raises(PolicyError, match=r"round 2 of 3.*second run beside one"):
        ours.accept(signed(SECOND), "run-2", ROSTER)
    assert ours.accept(signed(FIRST), "run-1", ROSTER) == FIRST  # which goes on


def test_a_run_ends_by_its_rounds_or_by_the_roots_word(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history)
    ours.accept(signed(FIRST), "run-1", ROSTER)
    stands_at(state, FIRST, 2)
    ending = replace(SECOND, ends=("run-1",))
    assert ours.accept(signed(ending), "run-2", ROSTER) == ending
    stands_at(state, ending, 3)
    third = replace(FIRST, number=3, run="run-3")
    assert ours.accept(signed(third), "run-3", ROSTER) == third


def test_results_that_were_missed_count_too(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history)
    ours.accept(signed(FIRST), "run-1", ROSTER)
    stands_at(state, FIRST, 1)
    history.done = FIRST.rounds
    assert ours.accept(signed(SECOND), "run-2", ROSTER) == SECOND


def test_where_runs_are_approved_nothing_begins_before(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history, must_approve=True)
    assert ours.accept(signed(FIRST), "run-1", ROSTER) is None
    assert ours.is_waiting
    known = read_newest(state.path)
    assert known is not None
    assert (known.charter, known.is_approved) == (FIRST, False)
    with pytest.raises(StateError, match="not the newest"):
        approve_newest(state.path, 2)
    assert ours.accept(signed(FIRST), "run-1", ROSTER) is None
    approve_newest(state.path, 1)  # from another process, while this one has the folder
    assert ours.accept(signed(FIRST), "run-1", ROSTER) == FIRST
    assert not ours.is_waiting
    assert runs(state, history, must_approve=True).accept(signed(FIRST), "run-1", ROSTER) == FIRST
    assert ours.accept(signed(SECOND), "run-2", ROSTER) is None  # each waits for itself


def test_the_rounds_of_a_run_are_its_charters(state: StateFolder, history: NoResults) -> None:
    ours = runs(state, history)
    ours.accept(signed(FIRST), "run-1", ROSTER)
    assert (ours.rounds_of("run-1"), ours.rounds_of("run-2")) == (3, None)
