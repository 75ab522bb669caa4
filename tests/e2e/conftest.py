from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.e2e.federation import Federation
from tests.support.postgresql import new_postgresql_database

__all__ = ["new_postgresql_database"]
NewFederation = Callable[..., Federation]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_federation(tmp_path: Path) -> Iterator[NewFederation]:
    """``new_federation("abc", c_max=1)`` enrols three institutions; their processes end with the test."""
    made: list[Federation] = []

    def make(members: str = "abc", **fields: object) -> Federation:
        made.append(Federation.make(tmp_path, members, **fields))
        return made[-1]

    yield make
    for federation in made:
        federation.stop()
