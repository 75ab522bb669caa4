"""One institution with most of the images: its share of the sums, when it is told and stops, and what bounds it."""

import logging

import numpy as np
import pytest
from sqlalchemy import select
from tests.sdk.rounds.test_crashes import Crash
from tests.sdk.support.federation import SIZE

import fedddpm.rounds.round_update
from fedddpm import LocalPolicyOptions
from fedddpm.cli.status import status_rows
from fedddpm.compute.seeds import derived_seed
from fedddpm.errors import PolicyError
from fedddpm.rounds.round_update import RoundUpdate
from fedddpm.transport.endpoints import SessionApi
from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.db.tables import AttemptRow
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical

BIG, SMALL = "hospital-a", ("hospital-b", "hospital-c")
NO_LIMIT = LocalPolicyOptions(warn_share=1e9, max_share=1e9)


@pytest.fixture(autouse=True)
def _the_same_draws_in_every_run(monkeypatch):
    """What institutions draw is secret and so are the figures to the last digit; here they follow from names."""
    monkeypatch.setattr(
        fedddpm.rounds.round_update, "training_seed", lambda state: derived_seed("shares", state.path.name)
    )


@pytest.fixture
def fed(federation):
    """Three institutions with 240, 13 and 14 images."""
    made = federation("abc")
    images = np.random.default_rng(9).integers(0, 256, (240, SIZE, SIZE), dtype=np.uint8)
    np.savez(made.folder / f"{BIG}.npz", images=images)
    return made


def start(fed, rounds=3, **settings):
    options = {"clip_norm": 100.0, "learning_rate": 1e-3, "weight_cap": 216, **settings}
    fed.start_run(Method.UDEC, rounds, **options)


def trains(*_):
    raise AssertionError("it trained for another round")


def figures(summaries, name="share"):
    return {member: [getattr(summary, name) for summary in rounds] for member, rounds in summaries.items()}


def clip_norms(fed):
    """By round, as they stand in the signed specifications."""
    with open_context(Settings(data=fed.data)).database.read() as db:
        bodies = db.scalars(select(AttemptRow.spec).order_by(AttemptRow.id)).all()
    return [canonical.decode(RoundSpec, body).clip_norm for body in bodies]


def test_by_samples_the_sum_is_the_big_ones_update_and_it_stops(fed, caplog, monkeypatch):
    start(fed, weighting="hidden")
    with caplog.at_level(logging.WARNING, logger="fedddpm"):
        first = fed.together(rounds=1)
    shares, cosines = figures(first), figures(first, "cosine")
    assert sum(share for (share,) in shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares[BIG][0] > 0.97
    assert cosines[BIG][0] > 0.99
    assert f"own share {100 * shares[BIG][0]:.0f} % (cosine {cosines[BIG][0]:.2f})" in str(first[BIG][0])
    assert fed.rounds_of(BIG)[0]["shares"]["decoder"] == pytest.approx(shares[BIG][0])
    assert [f"{100 * shares[BIG][0]:.0f} % of the mean of round 1" in text for text in caplog.messages] == [True]
    rows = dict(status_rows(fed.folder / f"state-{BIG}", None))
    assert rows["own share of the mean"].endswith("in round 1 of run run-udec")
    with monkeypatch.context() as patch:
        patch.setattr(RoundUpdate, "of", trains)
        for _ in range(2):  # a restart meets the same stop
            with pytest.raises(PolicyError, match=r"\d+ % of the mean.*max_share.*equal weights"):
                fed.client(BIG).participate()
    assert not any(BIG in line.joined for line in overview(open_context(Settings(data=fed.data))) if line.round == 1)
    taken = fed.together(policy=NO_LIMIT)
    assert [len(rounds) for rounds in taken.values()] == [2, 2, 2]


def test_equal_weights_and_the_clip_norm_that_follows_bound_it(fed, caplog):
    start(fed, rounds=4)
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        shares = figures(fed.together(policy=NO_LIMIT))[BIG]
    clips, ctx = clip_norms(fed), open_context(Settings(data=fed.data))
    assert clips[0] == 100.0
    assert clips[0] > clips[1] > clips[2] > clips[3]
    assert shares[0] > 0.8
    assert shares[0] > shares[1] > shares[2] > shares[3]
    assert shares[3] <= 1 / 3**0.5 + 0.05
    scaled = [text for text in caplog.messages if "above the round's clip norm" in text]
    assert [text.partition(":")[0] for text in scaled] == ["round 2", "round 3", "round 4"]
    assert f"clip norm {clips[1]:.3g}" in scaled[0]
    assert [line.clip_norm for line in overview(ctx)] == clips
    assert verify_history(ctx)["results"] == 4


def test_a_fixed_clip_norm_stays(fed):
    start(fed, rounds=2, clip="fixed")
    shares = figures(fed.together(policy=NO_LIMIT))[BIG]
    assert clip_norms(fed) == [100.0, 100.0]
    assert shares[1] > 0.8
    assert verify_history(open_context(Settings(data=fed.data)))["results"] == 2


def test_a_share_that_the_next_clip_norm_mends_stops_nobody(fed, caplog):
    """After round 1 the share is above max_share; within the clip norm that follows it is not."""
    start(fed, rounds=2)
    policy = LocalPolicyOptions(warn_share=0.5, max_share=0.78)
    with caplog.at_level(logging.WARNING, logger="fedddpm"):
        shares = figures(fed.together(policy=policy))[BIG]
    assert shares[0] > 0.78 > shares[1]
    told = [text for text in caplog.messages if "above warn_share" in text]
    assert len(told) == 2
    assert "the others' images count for little" in told[0]


def test_verify_names_a_clip_norm_that_is_not_the_charters(fed):
    start(fed, rounds=2, clip="fixed")
    fed.together(policy=NO_LIMIT)
    ctx = open_context(Settings(data=fed.data))
    with ctx.transaction() as db:
        db.connection().exec_driver_sql("UPDATE runs SET clip = 'adaptive'")
    with pytest.raises(HistoryError, match="its row tells something else than its charter"):
        verify_history(ctx)


def test_equals_are_told_nothing(federation, caplog):
    fed = federation("abc")
    start(fed, rounds=3)
    with caplog.at_level(logging.WARNING, logger="fedddpm"):
        shares = figures(fed.together())
    assert all(0.2 < share < 0.5 for rounds in shares.values() for share in rounds)
    assert not any("share" in text for text in caplog.messages)


def test_a_share_that_nobody_can_know_is_called_so(fed, monkeypatch):
    """Killed after its answer, it meets a result whose specification it does not hold."""
    start(fed, rounds=1)
    unmask = SessionApi.unmask

    def dies(api, *arguments):
        unmask(api, *arguments)
        if api._connection.member_id == BIG:
            raise Crash

    monkeypatch.setattr(SessionApi, "unmask", dies)
    with pytest.raises(Crash):
        fed.together()
    monkeypatch.undo()
    (summary,) = fed.client(BIG).participate()
    assert summary.took_part
    assert summary.share is None
    assert "own share not known" in str(summary)
