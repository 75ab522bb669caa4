"""What goes under masks is one vector, made once."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np

from fedddpm.updates.local_update import LocalUpdate, require_finite

SIZE = 2**20


def make_update() -> LocalUpdate:
    return LocalUpdate(
        run="run",
        round=0,
        base_model_hash=b"\x02" * 32,
        terms_hash=b"\x09" * 32,
        delta=np.full(SIZE, 0.5, np.float32),
        local=np.zeros(0, np.float32),
        samples=3,
        loss_before=0.5,
        loss_after=0.25,
        seconds=1.0,
    )


def test_without_anything_to_make_up_for_it_is_the_delta_itself() -> None:
    update = make_update()
    assert update.sent is update.delta


def test_it_is_made_once_and_anew_for_another_update() -> None:
    update = replace(make_update(), feedback=np.full(SIZE, 0.25, np.float32))
    assert update.sent is update.sent
    assert np.array_equal(update.sent, np.full(SIZE, 0.75, np.float32))
    other = replace(update, feedback=np.full(SIZE, 0.125, np.float32))
    assert np.array_equal(other.sent, np.full(SIZE, 0.625, np.float32))
    assert other.digest != update.digest


def test_checking_and_naming_it_makes_no_other() -> None:
    update = replace(make_update(), feedback=np.full(SIZE, 0.25, np.float32))
    tracemalloc.start()
    sent = update.sent
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    require_finite(update)
    assert update.digest
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert grown < 1.5 * sent.nbytes  # what is hashed is copied, as bytes
