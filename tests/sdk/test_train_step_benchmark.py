"""The benchmark of one training step: what it measures and what it says when a peer is missing."""

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fedddpm.data import ImageSet

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_step_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_peer_is_told(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "PEERS", {"surely_absent_peer": "surely-absent-peer"})
    monkeypatch.setattr("sys.argv", ["train_step.py", "--out", str(tmp_path)])
    assert benchmark.main() == 1
    assert "pip install surely-absent-peer" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_medians_ratios_and_both_reports(benchmark: ModuleType, tmp_path: Path) -> None:
    contenders = [
        benchmark.Contender("fedddpm paper", 1_000, lambda: time.sleep(0.01)),
        benchmark.Contender("slower", 2_000, lambda: time.sleep(0.03)),
    ]
    rows = benchmark.measure(contenders, steps=3, batch_size=10, device=torch.device("cpu"))
    assert [row.name for row in rows] == ["fedddpm paper", "slower"]
    assert 1 <= rows[0].ms_per_image < 2
    assert rows[0].ratio == 1
    assert 2 < rows[1].ratio < 3.5
    benchmark.write(tmp_path, rows, {"command": "python x.py", "threads": 2})
    report = json.loads((tmp_path / "train_step.json").read_text())
    assert report["threads"] == 2
    assert report["rows"][1]["parameters"] == 2_000
    assert "| slower | 2,000 |" in (tmp_path / "train_step.md").read_text()


def test_our_contender_really_trains(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    images = ImageSet(torch.zeros(8, 1, 28, 28, dtype=torch.uint8))
    contender = benchmark.ours("tiny", images, batch_size=4, device=torch.device("cpu"))
    losses = [float(contender.step()) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
