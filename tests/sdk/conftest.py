"""Fixtures of the SDK's tests."""

import pytest
import torch
from tests.sdk.support.federation import Federation


@pytest.fixture
def federation(tmp_path):
    """``federation("abc")`` makes a federation of three and serves it; its process ends with the test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = []

    def make(members="abc", **options):
        made.append(Federation(tmp_path, members, **options))
        made[-1].serve()
        return made[-1]

    yield make
    torch.set_num_threads(threads)
    for one in made:
        one.kill()
