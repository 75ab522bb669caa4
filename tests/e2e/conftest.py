from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.federation import Federation, InstalledFederation
from tests.support.one_thread import one_thread
from tests.support.postgresql import new_postgresql_database

__all__ = ["new_postgresql_database", "one_thread"]
NewFederation = Callable[..., Federation]


@pytest.fixture
def new_federation(tmp_path: Path) -> Iterator[NewFederation]:
    """``new_federation("abc", c_max=1)`` enrols three institutions; their processes end with the test."""
    yield from _federations(tmp_path, Federation)


@pytest.fixture
def new_installed_federation(tmp_path: Path) -> Iterator[NewFederation]:
    """As ``new_federation`` with the installed programs."""
    yield from _federations(tmp_path, InstalledFederation)


def _federations(folder: Path, kind: type[Federation]) -> Iterator[NewFederation]:
    made: list[Federation] = []

    def make(members: str = "abc", **fields: object) -> Federation:
        made.append(kind.make(folder, members, **fields))
        return made[-1]

    yield make
    for federation in made:
        federation.stop()
