"""Two server processes over one PostgreSQL and one data directory: one sweeps, both serve, the sum is exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.aggregator.support.driver import STEPS, Institution, drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess, identity_of
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, result_of

from fedddpm_aggregator.app import data_directory
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.rosters import require_its_blobs
from fedddpm_aggregator.vectors.model_files import model_blob


@pytest.fixture
def federation(new_federation: NewFederation) -> Federation:
    return new_federation()


@pytest.fixture
def two(federation: Federation) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    servers = ServerProcess(federation), ServerProcess(federation)
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.kill()


@pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)  # replicas need one
def test_a_round_over_two_replicas_of_which_one_dies(two: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = two
    federation = one.federation
    federation.start_run(rounds=2)
    site = Site(federation, one.url)
    for name in "cd":
        site.institutions[name].close()
        site.institutions[name] = Institution(other.url, name, identity_of(name))
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats)
    check_part(site, 0, seats)
    one.kill()  # it was first and held the sweeper's lease
    for name in "ab":
        site.institutions[name].close()
        site.institutions[name] = Institution(other.url, name, identity_of(name))
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site, 1), "decoder")
    drive(seats, STEPS)
    check_part(site, 1, seats)
    site.close()


def test_a_replica_with_blobs_of_its_own_does_not_start(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    federation.start_run()
    settings = federation.settings.model_copy(update={"blobs": str(tmp_path / "elsewhere")})
    with pytest.raises(OperatorError, match="do not belong to this database"), data_directory(settings):
        pass
    with data_directory(federation.settings) as ctx:
        require_its_blobs(ctx)


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_blobs_without_the_averaged_model_are_not_served(new_federation: NewFederation, serve: Serve) -> None:
    """Institutions would train, and answer for a sum, and no round would come of it."""
    federation = new_federation()
    federation.start_run("FULL", outer_momentum=0.5)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "full")
    drive(seats)
    averaged = result_of(site, 0).averaged_hash.hex()
    with federation.context() as ctx:
        require_its_blobs(ctx)
        ctx.blobs.remove(model_blob(averaged))
        with pytest.raises(OperatorError, match=f"model {averaged} of run 'run-1' is not there"):
            require_its_blobs(ctx)
