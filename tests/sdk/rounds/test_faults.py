"""What a user or an aggregator can do wrong: each its own clear error, and nothing is sent."""

import contextlib
import sqlite3
import threading
import time

import numpy as np
import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_spec
from tests.sdk.support.federation import NETWORK, SIZE

from fedddpm import LocalPolicyOptions
from fedddpm.errors import DataError, ModelError, PolicyError, TrainingError
from fedddpm.identity import Identity
from fedddpm.rounds.attempt import require_enough_reporters
from fedddpm.rounds.trust import AcceptedSpec
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport import request_signing as signing_module
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi, SessionApi
from fedddpm.transport.problems import NotEnrolledError, SecondClientError, UnreachableError
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.wire.messages import SignedDocument

A = "hospital-a"


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def fed(federation):
    made = federation("abc")
    made.start_run(Method.UDEC)
    return made


def crash_before(monkeypatch, name):
    def die(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(SessionApi, name, die)
        yield


def test_another_root_key_is_refused(fed):
    other = Identity.generate("root").public_key.hex()
    with pytest.raises(PolicyError, match="not signed by the root key"):
        fed.client(A, federation_root=other).participate()


def test_who_is_not_enrolled_is_told_whom_to_call(fed):
    stranger = Identity.generate("hospital-x")
    stranger.save(fed.folder / "x.key")
    with pytest.raises(NotEnrolledError, match=f"{stranger.fingerprint}.*coordinator"):
        fed.client(A, identity=fed.folder / "x.key").participate()
    with pytest.raises(NotEnrolledError, match=stranger.fingerprint):  # an enrolled id with another key
        fed.client(A, identity=fed.folder / "x.key", member_id=A, state_dir=fed.folder / "s2").participate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": LocalPolicyOptions(preset="paper")}, "trains the network 'tiny'.*allows 'paper'.*policy's preset"),
        ({"policy": LocalPolicyOptions(c_max=1)}, "allows for 0 conspirators.*lower your c_max"),
        (
            {"policy": LocalPolicyOptions(min_cohort=4)},
            "3 members, your smallest cohort is 4 .your min_cohort is 4.*coordinator",
        ),
        (
            {"policy": LocalPolicyOptions(max_clip_norm=0.5)},
            "2.0 as the clip norm, your policy allows 0.5 .max_clip_norm.*coordinator",
        ),
    ],
)
def test_the_own_policy_stands_above_the_aggregator(fed, changes, message):
    with pytest.raises(PolicyError, match=message):
        fed.client(A, **changes).participate()


def test_images_of_another_size_are_told_before_training(fed):
    np.savez(fed.folder / "big.npz", images=np.zeros((4, 16, 16), np.uint8))
    with pytest.raises(DataError, match=f"{SIZE}x{SIZE} images.*yours are 16x16.*image_size={SIZE}"):
        fed.client(A, data=fed.folder / "big.npz").participate()


def test_an_altered_first_model_is_refused(fed):
    (path,) = (path for path in fed.data.rglob("*.safetensors") if path.stat().st_size > 1_000_000)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not the one its signed specification names"):
        fed.client(A).participate()


def test_an_update_with_nan_is_never_sent(fed, monkeypatch):
    for _ in crash_before(monkeypatch, "join"):
        with pytest.raises(Crash):
            fed.client(A).participate()
    with StateFolder(fed.folder / f"state-{A}", bytes.fromhex(fed.root), A) as state:
        position = state.newest_position()
        store = UpdateStore(state.path)
        update = store.load(position.base_model_hash)
        update.delta[7] = np.nan
        store.save(update)
    with pytest.raises(TrainingError, match=r"NaN.*not sent"):
        fed.client(A).participate()


def test_rounds_never_go_back(fed):
    state_dir = fed.folder / f"state-{A}"
    with StateFolder(state_dir, bytes.fromhex(fed.root), A) as state:
        state.move_to(RunPosition("run-udec", "UDEC", 1, b"r" * 32, b"i" * 32, b"b" * 32, "m.safetensors"))
    with pytest.raises(PolicyError, match="went back to round 1"):
        fed.client(A).participate()


def test_a_training_that_was_killed_goes_on_in_the_middle(fed, monkeypatch):
    steps = []

    def watch(reporter, round_, progress):
        steps.append(progress.step)
        if len(steps) == 2:
            raise Crash

    monkeypatch.setattr("fedddpm.monitoring.reporter.Reporter.training", watch)
    monkeypatch.setattr(
        "fedddpm.training.trainer.Trainer._is_due", lambda trainer, position, saved, at: position.step > saved
    )
    np.savez(fed.folder / "more.npz", images=np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE), np.uint8))
    with pytest.raises(Crash):
        fed.client(A, data=fed.folder / "more.npz").participate()
    for _ in crash_before(monkeypatch, "join"):
        with pytest.raises(Crash):
            fed.client(A, data=fed.folder / "more.npz").participate()
    assert steps[:2] == [1, 2]
    assert steps[2:] == list(range(2, 6))  # 36 images in batches of 8: the second step was not yet on the disk
    with pytest.raises(UnreachableError):  # the stored update is used: no step is trained again
        fed.kill() or fed.client(A, network=NETWORK.model_copy(update={"patience_s": 0.1})).participate()
    assert len(steps) == 6


def test_a_second_client_with_the_same_identity_is_told(fed):
    ended = {}

    def take_part(state_dir):
        try:
            ended[state_dir] = fed.client(A, state_dir=fed.folder / state_dir).participate(1)
        except SecondClientError as error:
            ended[state_dir] = error

    first = threading.Thread(target=take_part, args=("state-1",))
    first.start()
    fed.wait_for_join(0)
    with pytest.raises(SecondClientError, match="another process uses this identity"):
        fed.client(A, state_dir=fed.folder / "state-2").participate()
    with StateFolder(fed.folder / "state-3", bytes.fromhex(fed.root), A) as state:
        assert [state.next_seq() for _ in range(10)] == list(range(1, 11))
    third = threading.Thread(target=take_part, args=("state-3",))  # takes the place of the first
    third.start()
    while int(state_fact(fed, "state-3", "seq") or 0) < 11:
        time.sleep(0.1)
    fed.together(1, ["hospital-b", "hospital-c"])
    for thread in (first, third):
        thread.join(30)
    assert "that this process did not send" in str(ended["state-1"])
    assert ended["state-3"][0].took_part


def state_fact(fed, state_dir, name):
    with contextlib.closing(sqlite3.connect(fed.folder / state_dir / "state.sqlite")) as db:
        row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def test_a_wrong_clock_is_corrected_by_the_real_aggregator(fed, monkeypatch):
    class Slow:
        time = staticmethod(lambda: time.time() - 4000)

    monkeypatch.setattr(signing_module, "time", Slow)
    identity, warnings = Identity.load(fed.folder / f"{A}.key"), []
    with Connection(fed.url, identity, A, NETWORK, on_warning=warnings.append) as connection:
        transport = FederationApi(connection)
        assert transport.state(0, 0).run == "run-udec"
        assert transport.state(0, 0).run == "run-udec"
    assert len(warnings) == 1
    assert "s behind" in warnings[0]


def test_too_few_reporters_of_a_part_are_refused():
    roster = make_roster(4)
    document = SignedDocument(body=b"not opened again", signature=bytes(64))
    charter, spec = chartered(make_spec(roster, Method.USPLIT))
    accepted = AcceptedSpec(document, spec, charter, roster, floor=3)
    with pytest.raises(PolicyError, match="too few to hide one update"):
        require_enough_reporters(accepted, roster.ids[0])
