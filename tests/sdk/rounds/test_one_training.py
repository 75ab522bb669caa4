"""A base model is trained on once, under one set of terms, and one update of it goes under masks; all on the disk."""

import contextlib
import dataclasses
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.protocol.support.specs import changed, make_spec

import fedddpm.monitoring.reporter
import fedddpm.rounds.round_update
import fedddpm.rounds.session
from fedddpm.files.atomic import load_tensors
from fedddpm.state.folder import StateFolder
from fedddpm.state.secret import rounding_seed, training_seed
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.transport.endpoints import SessionApi
from fedddpm.updates.contribution import Contribution
from fedddpm.updates.local_update import LocalUpdate
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import ReleaseError, SpentError, TermsError
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import MOST_ANSWERS, SpentRecord
from fedddpm_protocol.wire.messages import Unmask

BASE, OTHER, T1, T2 = b"b" * 32, b"c" * 32, b"1" * 32, b"2" * 32
A, ALL = "hospital-a", ("a", "b", "c")

# What decides how an update travels, and who is asked for it; everything else decides what it becomes.
NO_TERMS = {
    *("protocol", "federation", "run", "round", "rounds", "attempt", "roster_version", "roster_hash"),
    *("initial_seed", "base_model_hash", "parts", "largest_cohort", "chunk_coordinates", "encoding_seed"),
    *("join_s", "shares_s", "masked_s", "confirm_s", "unmask_s", "previous_result", "terms_hash"),
    *("draw", "turn", "outer"),
}
OTHERWISE = {
    "method": "UDEC",
    "architecture": Architecture("tiny", 32, 1, 8, (1, 2)),
    "initial_model_hash": b"\x11" * 32,
    "weighting": "equal",
    "clip_norm": 1.5,
    "weight_cap": 999,
    "epochs": 2,
    "max_steps": 11,
    "batch_size": 5,
    "learning_rate": 2e-3,
    "charter_hash": b"\x13" * 32,
    "recipe": "modern",
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def opened(folder):
    return StateFolder(folder, b"r" * 32, "a")


def record(session, release=None, base=BASE, part="full", u3=ALL):
    answer = Unmask(id="a", body=session, signature=bytes(64))
    return SpentRecord(base, part, u3, session * 32, answer, release)


def test_whatever_decides_an_update_is_a_term():
    """A field that comes later has to be put on one side or the other."""
    assert {field.name for field in dataclasses.fields(RoundSpec)} == NO_TERMS | set(OTHERWISE)
    spec = make_spec()
    hashes = {spec.terms_hash}
    for name, value in OTHERWISE.items():
        other = make_spec(scheme=Method.UDEC) if name == "method" else changed(spec, **{name: value})
        hashes.add(other.terms_hash)
    assert len(hashes) == 1 + len(OTHERWISE)
    same = changed(spec, run="run-2", attempt=7, encoding_seed=b"\x12" * 32, join_s=1.0, base_model_hash=OTHER)
    assert same.terms_hash == spec.terms_hash
    with pytest.raises(ValueError, match="do not have the hash beside them"):
        replace(spec, learning_rate=1e-30)


def test_terms_outlive_the_process_and_others_are_refused(folder):
    with opened(folder) as state:
        SpentLedger(state).agree(BASE, T1)
    with opened(folder) as state:
        ledger = SpentLedger(state)
        ledger.agree(BASE, T1)
        ledger.agree(OTHER, T2)
        with pytest.raises(TermsError, match="another first model"):
            ledger.agree(BASE, T2)


def test_one_update_of_a_base_goes_under_masks(folder):
    with opened(folder) as state:
        ledger = SpentLedger(state)
        with pytest.raises(SpentError, match="no training on this base model"):
            ledger.give(BASE, b"u" * 32)
        ledger.agree(BASE, T1)
        assert not ledger.has_given(BASE)
        ledger.give(BASE, b"u" * 32)
    with opened(folder) as state:
        ledger = SpentLedger(state)
        assert ledger.has_given(BASE)
        assert not ledger.has_given(OTHER)
        ledger.agree(BASE, T1)  # does not forget it
        ledger.give(BASE, b"u" * 32)
        with pytest.raises(SpentError, match="another update was masked"):
            ledger.give(BASE, b"v" * 32)


def test_a_base_that_was_spent_before_there_were_terms_counts_as_given(folder):
    with opened(folder) as state:
        ledger = SpentLedger(state)
        ledger.commit(b"s" * 32, record(b"1"))
        assert ledger.has_given(BASE)


def test_a_spent_base_is_answered_three_times_at_most(folder):
    with opened(folder) as state:
        ledger = SpentLedger(state)
        for number in range(MOST_ANSWERS):
            assert ledger.answers(BASE, "full") == number
            ledger.commit(b"s" * 32, record(b"%d" % number))
            ledger.commit(b"s" * 32, record(b"%d" % number))  # the same answer again
    with opened(folder) as state:
        ledger = SpentLedger(state)
        assert ledger.answers(BASE, "full") == MOST_ANSWERS == 3
        with pytest.raises(SpentError, match="answered for 3 times"):
            ledger.commit(b"s" * 32, record(b"9"))
        release = Release(BASE, "full", ALL, ALL[:2])
        ledger.commit(b"s" * 32, record(b"8", release, u3=ALL[:2]))
        with pytest.raises(ReleaseError):
            ledger.commit(b"s" * 32, record(b"7", release, u3=ALL[:2]))
        assert ledger.recorded(BASE, "full") == ALL[:2]


def test_a_folder_from_before_counts_the_answer_that_it_holds(folder):
    with opened(folder) as state:
        SpentLedger(state).commit(b"s" * 32, record(b"1"))
        with state.transaction() as db:
            db.execute("DELETE FROM answers")
        assert SpentLedger(state).answers(BASE, "full") == 1


def update_of(spec, value=1.0):
    delta = np.full(4, value, np.float32)
    names = (spec.run, spec.round, spec.base_model_hash, spec.terms.hash)
    return LocalUpdate(*names, delta, np.zeros(0, np.float32), 10, 0.5, 0.4, 1.0)


def test_an_update_of_another_base_or_of_other_terms_is_not_taken(tmp_path):
    spec, store = make_spec(), UpdateStore(tmp_path)
    store.save(update_of(spec))
    assert store.load(spec.base_model_hash, spec.terms.hash).digest == update_of(spec).digest
    assert store.load(spec.base_model_hash) is not None
    assert store.load(OTHER, spec.terms.hash) is None
    assert store.load(OTHER) is None
    assert store.load(spec.base_model_hash, changed(spec, learning_rate=1e-30).terms.hash) is None


def test_a_digest_covers_all_that_is_sent():
    one = update_of(make_spec())
    others = [
        update_of(make_spec(), 1.0000001),
        replace(one, samples=11),
        replace(one, loss_before=0.6),
        replace(one, loss_after=0.6),
        replace(one, feedback=np.full(4, 0.25, np.float32)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6
    assert replace(one, seconds=99.0, run="another").digest == one.digest


@pytest.mark.parametrize("found", ["nothing", "a folder of somebody", "an open database"])
def test_the_secret_lies_in_files_of_this_user_alone(folder, found):
    """Also in a folder that others may enter, and where an older release left the database open to them."""
    if found != "nothing":
        folder.mkdir(mode=0o755)
        (folder / "lost+found").mkdir()
    if found == "an open database":
        sqlite3.connect(folder / "state.sqlite").close()
        (folder / "state.sqlite").touch(0o644)
        (folder / "state.sqlite").chmod(0o644)
    with opened(folder) as state:
        training_seed(state)
        files = [path for path in folder.iterdir() if path.name.startswith("state.sqlite")]
        assert len(files) == 3  # with SQLite's log and index
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


# --- with a real aggregator -------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def fed(federation):
    made = federation("abc")
    made.start_run(Method.UDEC, rounds=1)
    return made


def facts_of(fed, query):
    with contextlib.closing(sqlite3.connect(fed.folder / f"state-{A}" / "state.sqlite")) as db:
        return db.execute(query).fetchall()


def killed_at(fed, monkeypatch, where, name):
    """A client that dies where it would do ``name``."""

    def die(*arguments, **settings):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(where, name, die)
        with pytest.raises(Crash):
            fed.client(A).participate()


def test_nothing_is_trained_and_nothing_masked_before_the_ledger_says_so(fed, monkeypatch):
    seen = set()

    def look(step, original):
        def looked(*arguments, **settings):
            rows = facts_of(fed, "SELECT update_digest IS NOT NULL FROM trainings")
            seen.add((step, *rows))
            return original(*arguments, **settings)

        return looked

    monkeypatch.setattr(
        fedddpm.rounds.round_update, "train_update", look("train", fedddpm.rounds.round_update.train_update)
    )
    monkeypatch.setattr(Participant, "mask_chunk", look("mask", Participant.mask_chunk))
    killed_at(fed, monkeypatch, SessionApi, "join")
    assert seen == {("train", (0,))}
    seen.clear()
    fed.together(1)
    assert seen >= {("train", (0,)), ("mask", (1,))}


def test_an_update_that_was_given_and_is_gone_is_not_made_again(fed, monkeypatch):
    killed_at(fed, monkeypatch, SessionApi, "join")
    with StateFolder(fed.folder / f"state-{A}", bytes.fromhex(fed.root), A) as state:
        base = state.newest_position().base_model_hash
        store = UpdateStore(state.path)
        SpentLedger(state).give(base, store.load(base).digest)
        store.clear()
    told = []
    monkeypatch.setattr("fedddpm.monitoring.reporter.Reporter.warning", lambda self, text, *more: told.append(text))
    with monkeypatch.context() as patch:
        patch.setattr(fedddpm.rounds.round_update, "train_update", lambda *a, **s: pytest.fail("it was trained again"))
        killed_at(fed, monkeypatch, fedddpm.monitoring.reporter.Reporter, "waiting")
        killed_at(fed, monkeypatch, fedddpm.monitoring.reporter.Reporter, "waiting")
    assert [text for text in told if "sits out until the base model changes" in text]
    assert facts_of(fed, "SELECT value FROM facts WHERE name = 'seq'") == [(b"1",)]  # that of the first process


def test_the_secret_is_made_once_and_decides_the_training(fed, monkeypatch):
    seeds = []

    def note(original):
        def noted(*arguments, **settings):
            seeds.append(arguments[5])
            return original(*arguments, **settings)

        return noted

    monkeypatch.setattr(fedddpm.rounds.round_update, "train_update", note(fedddpm.rounds.round_update.train_update))
    killed_at(fed, monkeypatch, SessionApi, "join")
    ((secret,),) = facts_of(fed, "SELECT value FROM facts WHERE name = 'training-secret'")
    assert len(secret) == 32
    update = (fed.folder / f"state-{A}" / "update.safetensors").read_bytes()
    (fed.folder / f"state-{A}" / "update.safetensors").unlink()
    killed_at(fed, monkeypatch, SessionApi, "join")  # nothing was given: it is trained again, to the same bits
    again = load_tensors(fed.folder / f"state-{A}" / "update.safetensors")[0]
    (fed.folder / "first.safetensors").write_bytes(update)
    for name, tensor in load_tensors(fed.folder / "first.safetensors")[0].items():
        assert torch.equal(tensor, again[name]), name
    assert seeds[0] == seeds[1] > 2**240
    fed.together(1)
    assert len(set(seeds)) == 3  # each institution has its own
    assert facts_of(fed, "SELECT value FROM facts WHERE name = 'training-secret'") == [(secret,)]


def test_private_rounding_follows_from_the_secret_and_is_the_same_in_every_attempt(fed, monkeypatch):
    given = []

    class Noting(Contribution):
        def __init__(self, spec, part, update, pieces, rounding=None):
            given.append((spec.base_model_hash, part, rounding))
            super().__init__(spec, part, update, pieces, rounding)

    monkeypatch.setattr(fedddpm.rounds.session, "Contribution", Noting)
    for _ in range(2):
        killed_at(fed, monkeypatch, SessionApi, "join")
    with StateFolder(fed.folder / f"state-{A}", bytes.fromhex(fed.root), A) as state:
        base = state.newest_position().base_model_hash
        assert given == [(base, "decoder", rounding_seed(state, base, "decoder"))] * 2
        seeds = {rounding_seed(state, *what) for what in ((base, "decoder"), (base, "encoder"), (OTHER, "decoder"))}
        assert len(seeds) == 3
    with StateFolder(fed.folder / "another", bytes.fromhex(fed.root), A) as state:
        assert rounding_seed(state, base, "decoder") not in seeds


def test_no_setting_and_no_public_word_decides_the_training(fed, monkeypatch):
    """Two state folders of one institution, all else the same: two trainings."""
    digests = set()
    for number in range(2):
        state_dir = fed.folder / f"again-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(SessionApi, "join", lambda *arguments: (_ for _ in ()).throw(Crash()))
            with pytest.raises(Crash):
                fed.client(A, state_dir=state_dir, seed=0).participate()
        with StateFolder(state_dir, bytes.fromhex(fed.root), A) as state:
            digests.add(UpdateStore(state_dir).load(state.newest_position().base_model_hash).digest)
    assert len(digests) == 2
