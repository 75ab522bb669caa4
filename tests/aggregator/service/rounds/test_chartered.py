"""Every specification that the aggregator makes follows from charter and lineage, whatever became of the rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update
from tests.aggregator.service.rounds.made_up_rounds import conclude, confirm, fail_attempt, rings_of, spec_in
from tests.aggregator.support.federations import WIDER, Federation

from fedddpm_aggregator.background.opening_threads import OpeningThreads
from fedddpm_aggregator.background.sweeper import Sweeper
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.service.administration.run_settings import RunSettings
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.chartered import charter_of, lineage_of
from fedddpm_aggregator.service.rounds.reading import run_state
from fedddpm_protocol.agreement.charter import open_charter
from fedddpm_protocol.agreement.lineage import Lineage, require_follows
from fedddpm_protocol.agreement.spec import RoundSpec

SETTINGS = RunSettings(
    "run-1",
    "USPLIT",
    6,
    bits=8,
    first_bits=16,
    weighting="equal",
    chunk_coordinates=128,
    schedule="linear",
    learning_rate=0.006,
)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, members=tuple("abcdef"), c_max=0, manifests=WIDER)


def begun(ctx: Context, lineage: Lineage) -> RoundSpec:
    """The next attempt, which follows from the root-signed charter and from nothing but the results."""
    rings_of(ctx)
    state, spec = run_state(ctx), spec_in(ctx)
    with ctx.database.read() as db:
        federation, (run,) = queries.federation(db), queries.open_runs(db)
        roster = ctx.newest_roster(db)
    assert state.charter is not None
    assert federation is not None
    assert federation.root_public_key is not None
    charter = open_charter(state.charter, federation.root_public_key)
    assert charter == charter_of(run)
    assert lineage == lineage_of(run)
    require_follows(spec, charter, lineage, roster)
    return spec


def test_specifications_follow_over_failures_wraps_and_parts_that_stay_closed(federation: Federation) -> None:
    lineage, specs = Lineage(), []
    with federation.context() as ctx:
        federation.start(ctx, SETTINGS, federation.write_theta_0())
        specs += [begun(ctx, lineage)]
        lineage = lineage.after(conclude(ctx, missing="decoder"))
        specs += [begun(ctx, lineage)]
        confirm(ctx, "encoder")
        fail_attempt(ctx)
        specs += [begun(ctx, lineage)]
        lineage = lineage.after(conclude(ctx, wrapped="bottleneck"))
        specs += [begun(ctx, lineage)]
        lineage = lineage.after(conclude(ctx))
        specs += [begun(ctx, lineage)]
    places = [(spec.round, spec.attempt) for spec in specs]
    assert places == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    assert [spec.learning_rate for spec in specs] == [0.006 * (left / 6) for left in (6, 5, 5, 4, 3)]
    seeds = [spec.encoding_seed for spec in specs]
    assert seeds[1] == seeds[2]  # the number of an attempt is the aggregator's
    assert len(set(seeds)) == 4
    widths = [[part.values.bits for part in spec.parts] for spec in specs]  # encoder, bottleneck, decoder
    assert widths == [[16, 16, 16], [8, 8, 16], [32, 8, 16], [8, 32, 8], [8, 8, 8]]
    assert specs[-1].clip_norm < specs[0].clip_norm


def test_a_run_from_before_charters_is_stopped_in_the_middle_of_a_round(federation: Federation) -> None:
    with federation.context() as ctx:
        federation.start(ctx, SETTINGS, federation.write_theta_0())
        rings_of(ctx)
        with ctx.transaction() as db:
            db.execute(update(RunRow).values(charter=None, charter_signature=None, charter_number=None))
        workers = OpeningThreads(ctx)
        for _ in range(3):
            Sweeper(ctx, workers, 0.1).tick(0.1)
        workers.close(10)
        state = run_state(ctx)
        with ctx.database.read() as db:
            attempts = db.scalars(select(AttemptRow)).all()
        assert [attempt.status for attempt in attempts] == ["failed"]
        assert (state.status, state.charter) == ("stalled", None)
        assert state.reason == "run run-1 is from before charters; end it and sign a new one: federation sign-run"
        federation.install()  # a newer roster begins no attempt either
        Sweeper(ctx, OpeningThreads(ctx), 0.1).tick(0.1)
        with ctx.database.read() as db:
            assert len(db.scalars(select(AttemptRow)).all()) == 1
        signed = federation.signed(replace(SETTINGS, name="run-2"), federation.write_theta_0(2.0), 1, ("run-1",))
        assert signed.body
