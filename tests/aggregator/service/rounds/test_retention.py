"""Old rounds: their vectors go, their signatures stay, and nobody who was away is lost."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.aggregator.support.driver import drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, result_of, until

from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.db.tables import ModelRow, RemovalRow, RunRow
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.publishing import StoredModel, remember_model
from fedddpm_aggregator.service.rounds.retention import retain
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_aggregator.settings import Settings

KEEP, ROUNDS = 2, 4


@pytest.fixture(params=["directory", "s3"])
def federation(
    request: pytest.FixtureRequest, new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Federation]:
    """One that keeps two rounds, over either kind of blobs."""
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_ROUNDS", str(KEEP))
    if request.param == "s3":
        monkeypatch.setenv("FEDDDPM_AGGREGATOR_BLOBS", request.getfixturevalue("s3_url"))
    return new_federation()


def play(site: Site, rounds: int, part: str = "decoder") -> None:
    for number in range(rounds):
        seats = take_seats(site.institutions.values(), site.federation.roster, first_state(site, number), part)
        drive(seats)
        check_part(site, number, seats)


def removed(site: Site, path: str) -> str | None:
    """What the aggregator says of a vector that it keeps no longer; None while it is there."""
    response = site["a"].http.send(site["a"].signed("GET", path))
    if response.status_code == 200:
        return None
    assert (response.status_code, response.json()["code"]) == (410, "removed")
    return str(response.json()["detail"])


def nothing_to_delete(ctx: Context) -> bool:
    with ctx.database.read() as db:
        return db.scalar(select(RemovalRow.name)) is None


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_only_the_newest_rounds_keep_their_vectors(federation: Federation, serve: Serve) -> None:
    federation.start_run(rounds=ROUNDS + 1)
    site = serve(federation)
    play(site, ROUNDS)
    results = [result_of(site, number) for number in range(ROUNDS)]
    with federation.context() as ctx:
        until(
            site, lambda _: nothing_to_delete(ctx) and removed(site, "/v1/results/run-1/1/opened/decoder") is not None
        )
        with ctx.database.read() as db:
            run = db.scalars(select(RunRow)).one()
        kept = [removed(site, f"/v1/results/run-1/{number}/opened/decoder") is None for number in range(ROUNDS)]
        assert kept == [False, False, True, True]
        models = [run.initial_model, run.first_base, *(result.model_hash.hex() for result in results)]
        kept = [removed(site, f"/v1/models/{model}") is None for model in models]
        assert kept == [True, True, False, True, True, True]  # one more than rounds: the oldest kept is derived from it
        assert "take the newest one" in str(removed(site, f"/v1/models/{models[2]}"))
        assert [ctx.blobs.exists(f"models/{model}.safetensors") for model in models] == kept
        opened = [ctx.blobs.exists(f"opened/{result.spec_hash.hex()}/decoder") for result in results]
        assert opened == [False, False, True, True]
        counts = verify_history(ctx)
    assert (counts["results"], counts["opened sums"], counts["models derived anew"]) == (ROUNDS, 2, 2)
    assert (counts["opened sums removed by retention"], counts["models removed by retention"]) == (2, 1)


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_averaged_models_go_with_their_rounds(federation: Federation, serve: Serve) -> None:
    federation.start_run(method="FULL", rounds=ROUNDS + 1, outer_momentum=0.5)
    site = serve(federation)
    play(site, ROUNDS, "full")
    results = [result_of(site, number) for number in range(ROUNDS)]
    with federation.context() as ctx:
        until(site, lambda _: nothing_to_delete(ctx) and removed(site, "/v1/results/run-1/1/opened/full") is not None)
        for hashes in ([one.model_hash for one in results], [one.averaged_hash for one in results]):
            assert [removed(site, f"/v1/models/{one.hex()}") is None for one in hashes] == [False, True, True, True]
            assert [ctx.blobs.exists(f"models/{one.hex()}.safetensors") for one in hashes] == [False, True, True, True]
        counts = verify_history(ctx)
    assert (counts["results"], counts["models derived anew"], counts["models removed by retention"]) == (ROUNDS, 2, 2)


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a run of three rounds, all kept."""
    federation = Federation(tmp_path_factory.mktemp("three"))
    federation.start_run(rounds=3)
    with served_here(federation.settings) as url, contextlib.closing(Site(federation, url)) as site:
        play(site, 3)
        until(site, lambda state: state.status == "finished")
    return federation.settings.data


@pytest.fixture
def finished(three_rounds: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(three_rounds, tmp_path / "data")


@contextlib.contextmanager
def keeping(data: Path, rounds: int) -> Iterator[Context]:
    ctx = open_context(Settings(data=data, keep_rounds=rounds))
    try:
        yield ctx
    finally:
        ctx.database.close()


def count_files(data: Path, pattern: str) -> int:
    return len([path for path in (data / "blobs").glob(pattern) if path.is_file()])


def test_old_rounds_are_removed_while_the_history_is_verified(finished: Path) -> None:
    """What an attempt was said to have when it was looked up may be gone when its blobs are read."""
    with keeping(finished, 1) as ctx:
        assert verify_history(ctx, step=lambda _: retain(ctx))["opened sums removed by retention"] == 2


def test_a_process_killed_while_it_deletes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keeping(finished, 1) as ctx:
        whole = ctx.blobs.remove_tree

        def killed(name: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ctx.blobs, "remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            retain(ctx)
        assert not nothing_to_delete(ctx)
        verify_history(ctx)  # it is said to be removed, and there still
        monkeypatch.setattr(ctx.blobs, "remove_tree", whole)
        retain(ctx)
        assert nothing_to_delete(ctx)
        assert verify_history(ctx)["opened sums removed by retention"] == 2
    assert count_files(finished, "opened/*/decoder") == 1


def test_nothing_goes_by_default_and_a_smaller_limit_takes_effect_later(finished: Path) -> None:
    with keeping(finished, Settings(data=finished).keep_rounds) as ctx:
        retain(ctx)
    assert count_files(finished, "opened/*/decoder") == 3
    for keep, opened, models in ((3, 3, 5), (2, 2, 5), (1, 1, 4), (1, 1, 4), (2, 1, 4)):
        with keeping(finished, keep) as ctx:
            retain(ctx)
            verify_history(ctx)
        assert (count_files(finished, "opened/*/decoder"), count_files(finished, "models/*")) == (opened, models), keep


def test_a_model_that_comes_back_is_kept(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keeping(finished, 1) as ctx:
        monkeypatch.setattr(ctx.blobs, "remove", lambda name: None)
        retain(ctx)
        with ctx.database.read() as db:
            model = db.scalars(select(ModelRow).where(ModelRow.removed_at.is_not(None))).one()
        with ctx.transaction() as db:
            remember_model(db, StoredModel(model.hash, model.size))
        with ctx.database.read() as db:
            assert db.get_one(ModelRow, model.hash).removed_at is None
