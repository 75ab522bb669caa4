"""The benchmark of time to quality: who is looked at when, what is said of it, and both reports."""

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.hand_clock import HandClock
from torch import Tensor, nn


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("benchmarks.time_to_quality")


class Peer:
    """Takes an eighth of a CPU minute a step, and gets nearer with every one."""

    name = "peer"

    def __init__(self, clock: HandClock) -> None:
        self.network, self.steps, self._clock = nn.Linear(3, 2), 0, clock

    def step(self, steps: int) -> None:
        self.steps += steps
        self._clock.sleep(7.5 * steps)

    def draw(self) -> Tensor:
        return torch.full((1, 1, 2, 2), self.steps, dtype=torch.int64)


def nearness(drawn: Tensor) -> float:
    return 100.0 / float(drawn.float().mean())


@pytest.fixture
def peer(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Peer:
    clock = HandClock()
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(process_time=clock.perf_counter))
    monkeypatch.setattr(benchmark, "STEPS", 1)
    return Peer(clock)


def test_a_peer_is_looked_at_three_times(benchmark: ModuleType, peer: Peer) -> None:
    rows = list(benchmark.race(peer, 1e-4, nearness, 1.0, 4.0))
    assert [row.cpu_minutes for row in rows] == pytest.approx([1.0, 2.0, 4.0])
    assert [row.images for row in rows] == [8 * benchmark.BATCH, 16 * benchmark.BATCH, 32 * benchmark.BATCH]
    assert [row.distance for row in rows] == [12.5, 6.25, 3.125]
    assert not any(row.good for row in rows)


def test_who_is_good_is_looked_at_no_more(benchmark: ModuleType, peer: Peer) -> None:
    rows = list(benchmark.race(peer, 1e-4, nearness, 6.25, 4.0))
    assert [(row.cpu_minutes, row.good) for row in rows] == [(pytest.approx(1.0), False), (pytest.approx(2.0), True)]


def row_of(benchmark: ModuleType, name: str, minutes: float, good: bool) -> Any:
    return benchmark.Row(name, 1_000, 1e-3, minutes, 1_600, 4.0 if good else 9.0, good)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([(5.0, False), (10.0, True)], "in 0.50 CPU minutes (0.75 with the shorter"),
        ([(5.0, False), (10.0, True)], "20.0 times sooner than the better peer. One seed"),
        (
            [(5.0, False), (8.0, False)],
            "more than 16.0 times sooner than the better peer, which did not come to 5 in 8",
        ),
    ],
)
def test_the_answer_says_how_much_sooner(benchmark: ModuleType, theirs: list[tuple[float, bool]], said: str) -> None:
    ours = [row_of(benchmark, benchmark.OURS, 0.25, False), row_of(benchmark, benchmark.OURS, 0.5, True)]
    rows = ours + [row_of(benchmark, "peer", minutes, good) for minutes, good in theirs]
    assert said in benchmark.answer(rows, 5.0)
    assert "did not come to a distance of 5" in benchmark.answer(rows[:1] + rows[2:], 5.0)


def test_both_reports(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = [row_of(benchmark, "peer", 2.0, True)]
    benchmark.write(tmp_path, rows, {"command": "python x.py", "answer": "sooner"})
    report = json.loads((tmp_path / "time_to_quality.json").read_text())
    assert report["rows"][0]["cpu_minutes"] == 2.0
    assert "| peer | 1,000 | 0.001 | 2.00 | 1,600 | 4.00 | yes |" in (tmp_path / "time_to_quality.md").read_text()


def test_every_image_comes_once_an_epoch(benchmark: ModuleType) -> None:
    batches = benchmark.images_in_turn(3 * benchmark.BATCH)
    epoch = torch.cat([next(batches) for _ in range(3)])
    assert sorted(epoch.tolist()) == list(range(3 * benchmark.BATCH))
