from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.adversary.support.lying_server import LyingFederation
from tests.support.one_thread import one_thread

__all__ = ["one_thread"]

NewLyingFederation = Callable[..., LyingFederation]


@pytest.fixture
def new_lying_federation(tmp_path: Path) -> Iterator[NewLyingFederation]:
    """``new_lying_federation("abc", c_max=1)`` enrols three institutions with an aggregator that will lie."""
    made: list[LyingFederation] = []

    def make(members: str = "abc", **fields: object) -> LyingFederation:
        made.append(LyingFederation.make(tmp_path, members, **fields))
        return made[-1]

    yield make
    for federation in made:
        federation.stop()
