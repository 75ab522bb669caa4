"""Which ring each part gets, what a specification says about theta_0, and what rounds moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.aggregator.service.rounds.made_up_rounds import conclude, confirm, fail_attempt, rings_of, spec_in
from tests.aggregator.support.federations import WIDER, Federation, with_metadata

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.run_settings import DEFAULT_FIRST_BITS, RunSettings
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_aggregator.service.history.traffic import Models, RoundTraffic, traffic_by_round
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.service.rounds.publishing import remove_strays, scrub
from fedddpm_aggregator.vectors.opened_values import opened_blob
from fedddpm_protocol.wire.phases import Phase


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, manifests=WIDER)


def test_the_seed_of_theta_0_stands_in_the_spec(federation: Federation) -> None:
    path = federation.write_theta_0()
    with federation.context() as ctx:
        with pytest.raises(OperatorError, match="64 hex digits"):
            federation.start(ctx, RunSettings("run-1", "UDEC", 2), with_metadata(path, initial_seed="5c"))
        federation.start(ctx, RunSettings("run-1", "UDEC", 2), with_metadata(path, initial_seed="5c" * 32))
        with ctx.transaction() as db:
            (run,) = queries.open_runs(db)
            start_attempt(ctx, db, run)
            attempt = queries.newest_attempt(db, run.id)
            assert attempt is not None
            spec = ctx.spec_of(attempt)
    assert spec.initial_seed == b"\x5c" * 32
    assert spec.part("decoder").values.bits == DEFAULT_FIRST_BITS


def test_each_part_has_a_ring_of_its_own(tmp_path: Path) -> None:
    """Encoder wrapped, bottleneck and decoder opened: the encoder alone goes wide, until it is opened."""
    federation = Federation(tmp_path, members=tuple("abcdef"), c_max=0, manifests=WIDER)
    settings = RunSettings("run-1", "USPLIT", 4, bits=8, first_bits=16, weighting="equal", chunk_coordinates=128)
    with federation.context() as ctx:
        federation.start(ctx, settings, federation.write_theta_0())
        assert rings_of(ctx) == {"encoder": 16, "bottleneck": 16, "decoder": 16}
        conclude(ctx, wrapped="encoder")
        assert rings_of(ctx) == {"encoder": 32, "bottleneck": 8, "decoder": 8}
        fail_attempt(ctx)
        assert rings_of(ctx) == {"encoder": 32, "bottleneck": 8, "decoder": 8}
        conclude(ctx, missing="decoder")
        assert rings_of(ctx) == {"encoder": 8, "bottleneck": 8, "decoder": 8}
        norms = {part.name: part.reference.norm for part in spec_in(ctx).parts}
    assert norms == {"encoder": 1.0, "bottleneck": 1.0, "decoder": 0.5}  # as of the round that opened it last


def test_a_part_that_may_have_been_answered_for_goes_wide(tmp_path: Path) -> None:
    """Members spent on this base refuse a second rounding with public dither; the next round has a new base."""
    federation = Federation(tmp_path, members=tuple("abcdef"), c_max=0, manifests=WIDER)
    settings = RunSettings("run-1", "USPLIT", 4, bits=8, first_bits=16, weighting="equal", chunk_coordinates=128)
    with federation.context() as ctx:
        federation.start(ctx, settings, federation.write_theta_0())
        rings_of(ctx)
        conclude(ctx)
        assert rings_of(ctx) == {"encoder": 8, "bottleneck": 8, "decoder": 8}
        confirm(ctx, "decoder")
        fail_attempt(ctx)
        assert rings_of(ctx) == {"encoder": 8, "bottleneck": 8, "decoder": 32}
        conclude(ctx)
        assert rings_of(ctx) == {"encoder": 8, "bottleneck": 8, "decoder": 8}


def test_opened_values_that_were_not_published_are_deleted(federation: Federation) -> None:
    with federation.context() as ctx:
        federation.start(ctx, RunSettings("run-1", "UDEC", 2, chunk_coordinates=128), federation.write_theta_0())
        rings_of(ctx)
        first = spec_in(ctx)
        fail_attempt(ctx)
        rings_of(ctx)
        second = spec_in(ctx)
        conclude(ctx)
        with ctx.transaction() as db:
            attempt = queries.newest_attempt(db, queries.open_runs(db)[0].id)
            assert attempt is not None
            for session in queries.sessions_of(db, attempt.id):
                session.phase = Phase.DONE
        blobs = [opened_blob(spec.hash.hex(), "decoder") for spec in (first, second)]
        for name in blobs:
            ctx.blobs.put(name, b"opened")
        scrub(ctx)
        assert [ctx.blobs.exists(name) for name in blobs] == [False, True]
        ctx.blobs.put(blobs[0], b"written while it was scrubbed")
        remove_strays(ctx)
        assert [ctx.blobs.exists(name) for name in blobs] == [False, True]


def test_traffic_of_newcomers_failed_attempts_and_seeds() -> None:
    models = Models(whole=1000, initial=1000, base=300)

    def line(round_: int, attempt: int, cohort: str, survivors: str, model: str | None) -> SessionLine:
        return SessionLine(
            run="run-1",
            method="UDEC",
            round=round_,
            attempt=attempt,
            part="decoder",
            phase="failed" if model is None else "done",
            joined=tuple(cohort),
            cohort=tuple(cohort),
            survivors=tuple(survivors),
            sums=(),
            reason=None,
            verdicts=(),
            base_model="",
            model=model,
            clip_norm=10.0,
            bits=8,
            upload_bytes=90,
            opened_bytes=0 if model is None else 80,
        )

    lines = [line(0, 0, "abc", "ab", None), line(0, 1, "abc", "abc", "m"), line(1, 0, "abcd", "abd", "n")]
    lines.append(line(2, 0, "abcd", "abcd", None))  # goes on
    first, second = traffic_by_round(lines, models)
    assert first == RoundTraffic(0, (8,), up=5 * 90, down=3 * 1000, float32=6 * 1000)
    assert second == RoundTraffic(1, (8,), up=3 * 90, down=1300 + 3 * 80, float32=8 * 1000)
    seeded, _ = traffic_by_round(lines, replace(models, initial=0))
    assert seeded.down == 0
