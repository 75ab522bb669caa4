"""A member that sends its update the other way round, as long as the clip norm lets it be: the alarms that ring.

Real trainings and the real secure sum in memory; no check of the protocol is broken by it and nobody can be named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import dominance
from benchmarks.dominance import Rounds, Way, spots

from fedddpm.experiment.aggregation.memory_round import Opened
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.alarms import LOSS, NORM, alarms_of

CLIP_NORM = 6.0  # honest updates have a norm of about 1.4: one of these outweighs three of them
SPOILER = "site-3"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(dominance, "BITS", 32)  # a narrow ring has no room for it, and is followed by the widest
    yield
    torch.set_num_threads(threads)


class SpoiledRounds(Rounds):
    """Four institutions with as many images, at a fixed clip norm."""

    def __init__(self, spoiled_from: int) -> None:
        way = Way("flipped", (24,) * 4, "equal", adaptive=False)
        super().__init__(way, [spots(24, seed) for seed in range(4)], batch_size=8, learning_rate=1e-3)
        self._clip, self._spoiled_from = CLIP_NORM, spoiled_from
        self.results: list[RoundResult] = []

    def _train(self, spec: RoundSpec, member: str) -> LocalUpdate:
        update = super()._train(spec, member)
        if member != SPOILER or spec.round < self._spoiled_from:
            return update
        flipped = -update.delta * (spec.clip_norm / np.linalg.norm(update.delta))
        return replace(update, delta=flipped.astype(np.float32))

    def _move_on(self, result: RoundResult, opened: Opened) -> None:
        self.results.append(result)
        super()._move_on(result, opened)


def rung(rounds: int, spoiled_from: int) -> list[tuple[str, int]]:
    spoiled = SpoiledRounds(spoiled_from)
    assert len(list(spoiled.run(rounds))) == rounds
    return [(alarm.kind, alarm.round) for alarm in alarms_of(spoiled.results)]


def test_from_the_start_the_loss_rings_after_three_spoiled_rounds() -> None:
    """Known with the result of the fourth, when everybody has measured what the third one left."""
    assert rung(4, spoiled_from=0) == [(LOSS, 3)]


def test_later_on_the_first_spoiled_mean_is_too_long_and_nothing_rings_before() -> None:
    assert rung(5, spoiled_from=4) == [(NORM, 4)]
