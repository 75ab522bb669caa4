from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation, Site
from tests.support.postgresql import new_postgresql_database, own_postgresql
from tests.support.s3_server import s3_server, s3_url

from fedddpm_aggregator.selftest.serving import served_here

__all__ = ["new_postgresql_database", "own_postgresql", "s3_server", "s3_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_federation(request: pytest.FixtureRequest, tmp_path: Path) -> NewFederation:
    """Makes federations on either database."""

    def create(**fields: object) -> Federation:
        url = request.getfixturevalue("new_postgresql_database")() if request.param == "postgresql" else None
        return Federation(tmp_path, url, **fields)  # type: ignore[arg-type]

    return create


@pytest.fixture
def serve() -> Iterator[Callable[[Federation], Site]]:
    """Serves federations in this process until the test ends."""
    running = []

    def start(federation: Federation) -> Site:
        server = served_here(federation.settings)
        site = Site(federation, server.__enter__())
        running.append((server, site))
        return site

    yield start
    for server, site in running:
        site.close()
        server.__exit__(None, None, None)
