"""The benchmark of one training step: what it measures and what it says when a peer is missing."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.support.hand_clock import HandClock

from fedddpm.data.opening import ImageSet
from fedddpm.model.unet import UNet


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("benchmarks.train_step")


def test_a_missing_peer_is_told(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(benchmark.peers.PEERS, "surely_absent_peer", "surely-absent-peer")
    monkeypatch.setattr("sys.argv", ["train_step.py", "--out", str(tmp_path)])
    assert benchmark.main() == 1
    assert "surely-absent-peer not installed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_medians_ratios_and_both_reports(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = HandClock()
    monkeypatch.setattr(benchmark, "time", clock)
    contenders = [
        benchmark.Contender("fedddpm paper", 1_000, lambda: clock.sleep(1 / 64)),
        benchmark.Contender("slower", 2_000, lambda: clock.sleep(3 / 64)),
    ]
    rows = benchmark.measure(contenders, 3, 10, torch.device("cpu"), {"slower": 2e9})
    assert [row.name for row in rows] == ["fedddpm paper", "slower"]
    assert 1 <= rows[0].ms_per_image < 2
    assert rows[0].ratio == 1
    assert 2 < rows[1].ratio < 3.5
    assert [(row.gflop_per_image, row.matrix_share) for row in rows] == [(0, None), (2, None)]
    swept = [benchmark.Threads(4, "fedddpm paper", 1.5)]
    benchmark.write(tmp_path, rows, swept, {"command": "python x.py", "threads": 2})
    report = json.loads((tmp_path / "train_step.json").read_text())
    assert report["threads"] == 2
    assert report["rows"][1]["parameters"] == 2_000
    assert report["sweep"] == [{"threads": 4, "name": "fedddpm paper", "ms_per_image": 1.5}]
    text = (tmp_path / "train_step.md").read_text()
    assert "| slower | 2,000 |" in text
    assert "| fedddpm paper | 4 | 1.50 |" in text


def test_the_share_of_a_cards_matrix_rate(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert benchmark.matrix_rate(torch.device("cuda")) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA of tomorrow")
    assert benchmark.matrix_rate(torch.device("cuda")) is None
    assert benchmark.matrix_rate(torch.device("cpu")) is None


def test_the_plain_network_is_the_same_function(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    fast, plain = UNet(28, 1), benchmark.peers.plain_unet()
    plain.load_state_dict(fast.state_dict())
    x_t, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(fast(x_t, t), plain(x_t, t), atol=1e-5, rtol=1e-4)
    convolution = torch.nn.Conv2d(1, 1, 3, bias=False)  # 26 x 26 x 9 multiplications and additions, twice and once more
    network = torch.nn.Module()
    network.forward = lambda x_t, t: convolution(x_t)
    assert benchmark._operations(network) == 2 * 26 * 26 * 9 * 2  # the image needs no gradient


def test_our_contender_really_trains(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    images = ImageSet(torch.zeros(8, 1, 28, 28, dtype=torch.uint8))
    contender = benchmark.ours("tiny", images, batch_size=4, device=torch.device("cpu"))
    losses = [float(contender.step()) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
