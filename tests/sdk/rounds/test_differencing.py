"""Sums that could be subtracted: one update under two methods, or sent twice because two trainings share a seed."""

from types import SimpleNamespace

import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import changed, make_spec

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.rounds.announcements import Announcements
from fedddpm.rounds.participation import Participation
from fedddpm.rounds.run_history import RunHistory
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.updates.local_training import _round_seed
from fedddpm_protocol.agreement.lineage import Lineage
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.errors import CharterError, SpecError, SpentError
from fedddpm_protocol.session.spent import SpentRecord
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.messages import SignedDocument, Unmask

ONE_RESULT = Lineage(results=1)
BASE, ALL, SOME = b"b" * 32, ("a", "b", "c", "d", "e", "f"), ("a", "c", "e")


def record(part, u3, session):
    return SpentRecord(BASE, part, u3, session * 32, Unmask(id="a", body=b"unmask", signature=bytes(64)))


@pytest.fixture
def state(tmp_path):
    with StateFolder(tmp_path / "state", b"r" * 32, "a") as opened:
        yield opened


def test_a_sum_of_the_whole_network_spends_each_of_its_parts(state):
    ledger = SpentLedger(state)
    ledger.commit(b"s" * 32, record("full", ALL, b"1"))
    for part in Method.USPLIT.sessions:
        assert ledger.recorded(BASE, part) == ALL
        with pytest.raises(SpentError):
            ledger.commit(b"t" * 32, record(part, SOME, b"2"))
    assert ledger.recorded(b"c" * 32, "decoder") == ()


def test_a_part_in_its_turn_is_spent_with_the_same_part_of_other_methods(state):
    ledger = SpentLedger(state)
    ledger.commit(b"s" * 32, record("turn-decoder", ALL, b"1"))
    for part in ("decoder", "bottleneck-decoder", "full"):
        with pytest.raises(SpentError):
            ledger.commit(b"t" * 32, record(part, SOME, b"2"))
    assert ledger.recorded(BASE, "turn-encoder") == ()


def test_sums_of_parts_spend_the_whole_network_but_not_each_other(state):
    ledger = SpentLedger(state)
    ledger.commit(b"s" * 32, record("decoder", SOME, b"1"))
    assert ledger.recorded(BASE, "encoder") == ()
    assert ledger.recorded(BASE, "full") == SOME
    ledger.commit(b"s" * 32, record("bottleneck", ALL, b"2"))
    with pytest.raises(SpentError, match="another first model"):
        ledger.recorded(BASE, "full")
    with pytest.raises(SpentError):
        ledger.commit(b"t" * 32, record("full", ALL, b"3"))


def test_a_run_keeps_its_method(state):
    roster = make_roster(6)
    charter, whole = chartered(make_spec(roster, Method.FULL))
    parts = make_spec(roster, Method.USPLIT)
    assert whole.base_manifest == parts.base_manifest
    names = (whole.previous_result, whole.initial_model_hash, whole.base_model_hash)
    state.move_to(RunPosition(whole.run, whole.method, whole.round, *names, "m.safetensors", lineage=ONE_RESULT))
    history = RunHistory(state, None, None, None, lambda results: None, LearningOptions(), LocalPolicyOptions())
    assert history.arrive(whole, charter, roster).method == "FULL"
    with pytest.raises(SpecError, match="was FULL and is now USPLIT"):
        history.arrive(parts, charter, roster)


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        ({"base_model_hash": b"x" * 32}, "does not build on the result"),
        ({"previous_result": b"x" * 32}, "does not build on the result"),
        ({"initial_model_hash": b"x" * 32}, "does not build on the result"),
        ({"round": 2, "previous_result": b"\x03" * 32}, "does not build on the result"),
        ({"round": 0, "previous_result": b""}, "went back to round 1"),
    ],
)
def test_a_run_goes_on_from_where_it_is_known_to_be(state, otherwise, said):
    """SPENT counts on it: a base that the aggregator could choose anew would be a fresh one every time."""
    roster = make_roster(6)
    charter, spec = chartered(make_spec(roster))
    names = (spec.previous_result, spec.initial_model_hash, spec.base_model_hash)
    position = RunPosition(spec.run, spec.method, spec.round, *names, "m.safetensors", lineage=ONE_RESULT)
    state.move_to(position)
    history = RunHistory(state, None, None, None, lambda results: None, LearningOptions(), LocalPolicyOptions())
    assert history.arrive(spec, charter, roster) == position
    with pytest.raises(CharterError, match="clip norm"):
        history.arrive(changed(spec, clip_norm=1.9), charter, roster)
    with pytest.raises((SpecError, PolicyError), match=said):
        history.arrive(changed(spec, **otherwise), charter, roster)


def test_a_base_under_its_terms_has_one_seed_of_256_bits():
    """No name that the aggregator may choose picks another: neither the run's nor the number of round or attempt."""
    spec = make_spec()
    others = [changed(spec, base_model_hash=BASE), changed(spec, epochs=2), make_spec(scheme=Method.UDEC)]
    seeds = {_round_seed(0, one) for one in (spec, *others)} | {_round_seed(1, spec), _round_seed(2**200, spec)}
    assert len(seeds) == 6
    assert max(seeds) > 2**248
    for same in ({"attempt": 1}, {"run": "run-2"}, {"round": 2}, {"encoding_seed": BASE}):
        assert _round_seed(0, changed(spec, **same)) == _round_seed(0, spec)


def test_one_session_at_a_time(monkeypatch):
    """A newer specification is only begun after the older attempt, with its secrets, was given up."""
    events = []

    class Recorded:
        def __init__(self, document):
            self.document, self.spec = document, make_spec()

        def leave(self, reason):
            events.append(("leave", self.document))

        def advance(self, sessions):
            events.append(("advance", self.document))

    participation = Participation.__new__(Participation)
    participation._attempt = participation._sat_out = None
    participation._reporter = Reporter()
    participation._telling = Announcements(participation._reporter, None)
    participation._roster = make_roster(3)
    participation._charters = SimpleNamespace(accept=lambda document, run, roster: chartered()[0])

    def begin(document, charter):
        events.append(("begin", document))
        return Recorded(document)

    monkeypatch.setattr(participation, "_begin", begin)
    first, second = (SignedDocument(body=bytes([number]), signature=bytes(64)) for number in (1, 2))
    for document in (first, first, second):
        participation._contribute(run_state(document))
    assert events == [
        ("begin", first),
        ("advance", first),
        ("advance", first),
        ("leave", first),
        ("begin", second),
        ("advance", second),
    ]


def run_state(document):
    return RunState(
        version=1,
        roster_version=1,
        run="r",
        method="UDEC",
        status="running",
        round=0,
        rounds=1,
        attempt=0,
        spec=document,
        sessions={},
        results=0,
        last_result=None,
        server_time=0.0,
    )
