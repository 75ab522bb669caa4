"""The benchmark of samplers: what it measures and what it says when a peer is missing."""

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.support.hand_clock import HandClock


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("benchmarks.sampling")


def test_a_missing_peer_is_told(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(benchmark.peers.PEERS, "surely_absent_peer", "surely-absent-peer")
    monkeypatch.setattr("sys.argv", ["sampling.py", "--out", str(tmp_path)])
    assert benchmark.main() == 1
    assert "surely-absent-peer not installed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_within_one_sampler(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = HandClock()
    monkeypatch.setattr(benchmark, "time", clock)

    def contender(name: str, sampler: str, seconds: float) -> object:
        return benchmark.Contender(name, sampler, 5, lambda: clock.sleep(seconds))

    line = [
        contender("fedddpm paper", "ddim", 1 / 32),
        contender("slower", "ddim", 3 / 32),
        contender("fedddpm paper", "dpm", 1 / 64),
        contender("lonely", "ancestral", 1 / 64),
    ]
    rows = benchmark.measure(line, repeats=3, batch=10)
    assert 1.9 < rows[0].ms_per_image < 4
    assert rows[0].images_per_s == pytest.approx(1000 / rows[0].ms_per_image)
    assert (rows[0].ratio, rows[2].ratio, rows[3].ratio) == (1, 1, None)
    assert 2 < rows[1].ratio < 3.5
    benchmark.write(tmp_path, rows, {"command": "python x.py", "threads": 2})
    report = json.loads((tmp_path / "sampling.json").read_text())
    assert [row["sampler"] for row in report["rows"]] == ["ddim", "ddim", "dpm", "ancestral"]
    assert "| slower | ddim | 5 |" in (tmp_path / "sampling.md").read_text()


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 3), ("dpm", 2)])
def test_our_contenders_really_draw(benchmark: ModuleType, sampler: str, steps: int) -> None:
    images = benchmark.ours("tiny", sampler, steps, 2, torch.device("cpu")).draw()
    assert (images.shape, images.dtype) == ((2, 1, 28, 28), torch.uint8)
    assert images.unique().numel() > 10


def test_all_steps_only_where_they_are_asked_for(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in ("lucidrains", "diffusers"):
        monkeypatch.setattr(benchmark, peer, lambda *_: benchmark.Contender("peer", "ddim", 1, torch.empty))
    options = argparse.Namespace(ddim_steps=3, dpm_steps=2, batch=1, ancestral=False)
    names = [(c.sampler, c.steps) for c in benchmark.line_up(options, torch.device("cpu")) if c.name != "peer"]
    assert names == [("ddim", 3)] * 2 + [("dpm", 2)] * 2
    options.ancestral = True
    assert [c.steps for c in benchmark.line_up(options, torch.device("cpu"))].count(1000) == 2
