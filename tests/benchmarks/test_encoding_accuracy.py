"""The benchmark of the encoding's accuracy: what it writes, that the targets hold, that its peers are what they say."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.support.repository import ROOT

from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.spec import WEIGHT_UNITS

TINY_DECODER = 117_873
MANIFEST = (TensorSpec("a", (30, 10)), TensorSpec("b", (212,)))
TARGETS = {8: 1e-3, 16: 2e-8}  # for five institutions


@pytest.fixture(scope="module")
def schemes() -> ModuleType:
    return importlib.import_module("benchmarks.encoding.schemes")


def run(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "encoding_accuracy.py"), "--quick", "--out", str(folder)]
    command += ["--data", str(folder / "images.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.soak
def test_a_quick_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(80) % 4)
    assert "has trained" in run(tmp_path)
    result = json.loads((tmp_path / "encoding_accuracy.json").read_text())
    assert result["parameters_of_made_updates"] == TINY_DECODER
    check_kept_updates(tmp_path)
    assert (tmp_path / "encoding_accuracy.png").stat().st_size > 10_000
    assert "from 3 institutions to 20" in (tmp_path / "encoding_accuracy.md").read_text()
    for kind in ("real", "student-t", "log-normal"):
        check_rows([row for row in result["rows"] if row["updates"] == kind], targets=kind == "student-t")
    check_changes({change["what"]: change for change in result["changes"]})


def check_kept_updates(folder: Path) -> None:
    """The same settings train nothing; others do not take what these left."""
    training, told = importlib.import_module("benchmarks.encoding.training"), []
    settings = training.Training(5, str(folder / "images.npz"), "data", 80, 8)
    case = training.real_updates(settings, folder, told.append)
    assert not told
    assert [len(delta) for delta in case.deltas] == [TINY_DECODER] * 5
    assert all(delta.any() for delta in case.deltas)
    assert max(case.units) == WEIGHT_UNITS
    other = training.real_updates(replace(settings, seed=1), folder, told.append)
    assert len(told) == 10  # five institutions, two rounds
    assert (other.deltas[0] != case.deltas[0]).any()


def check_rows(rows: list[dict[str, float]], targets: bool) -> None:
    plain = {row["way"]: row["nmse"] for row in rows if row["way"] != "ring"}
    rings = {int(row["bits"]): row for row in rows if row["way"] == "ring"}
    assert set(rings) == {6, 8, 12, 16, 32}
    assert plain["float32"] < 1e-13
    assert 1e-7 < plain["bfloat16"] < 1e-5
    assert rings[16]["nmse"] < plain["bfloat16"] / 10  # of the same size on the wire
    assert 12 < rings[6]["nmse"] / rings[8]["nmse"] < 20  # two bits more: a step of a quarter
    for row in rings.values():
        assert row["accepted"]
        assert not row["wrapped"]
        assert row["own_dithers"] is None or 0.8 < row["nmse"] / row["own_dithers"] < 1.1
    if targets:
        for bits, target in TARGETS.items():
            assert rings[bits]["target"] == target
            assert rings[bits]["nmse"] <= target
            assert rings[bits]["nmse"] < rings[bits]["per_tensor"] / 20


def check_changes(changes: dict[str, dict[str, float]]) -> None:
    for what in ("as before: 20 institutions", "from 3 institutions to 20", "from 20 institutions to 3"):
        assert changes[what]["accepted"]
        assert changes[what]["wrapped"] == 0
        assert changes[what]["nmse"] < 0.02
    for what in ("updates 2 times as long", "updates 3 times as long"):
        assert not changes[what]["accepted"]
        assert changes[what]["wrapped"] > 0


def test_bfloat16_rounds_as_torch_does(schemes: ModuleType) -> None:
    raw = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    raw = np.concatenate([raw, np.arange(0x3F800000, 0x3F840000, 0x2000, dtype=np.uint32)])  # ties among them
    values = raw.view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(schemes.to_bfloat16(values), expected)


def test_a_range_for_each_tensor_needs_room_for_all(schemes: ModuleType) -> None:
    generator = np.random.default_rng(2)
    deltas = [generator.standard_normal(512).astype(np.float32) for _ in range(20)]
    assert schemes.per_tensor_mean(deltas, [WEIGHT_UNITS] * 20, MANIFEST, 4) is None
    mean = schemes.per_tensor_mean(deltas, [WEIGHT_UNITS] * 20, MANIFEST, 16)
    assert np.abs(mean - np.mean(deltas, axis=0)).max() < 20 * 5 / 2**15  # twenty times half a step would be the most


@pytest.mark.parametrize("size", [3000, 5 * 2**16 - 100])  # one chunk, and two of wide blocks
def test_rotated_updates_come_back(size: int) -> None:
    ring_sums = importlib.import_module("benchmarks.encoding.ring")
    spec = ring_sums.round_spec((TensorSpec("a", (size,)),), 8, ring_sums.NOTHING_KNOWN, 5, "rotation")
    delta = np.random.default_rng(4).standard_normal(size).astype(np.float32)
    turned = ring_sums.rotated(spec, delta)
    assert abs(np.linalg.norm(turned) / np.linalg.norm(delta.astype(np.float64)) - 1) < 1e-9
    np.testing.assert_allclose(ring_sums.turned_back(spec, turned), delta, rtol=1e-6, atol=1e-7)


def test_wraps_are_counted_word_by_word() -> None:
    """Against sums of whole numbers from a ring that is wide enough."""
    ring_sums, updates = (importlib.import_module(f"benchmarks.encoding.{name}") for name in ("ring", "updates"))
    made = updates.student_t((TensorSpec("a", (4096,)),), 4)
    reference = ring_sums.ScaleReference(0.2, 4, 4 * WEIGHT_UNITS)  # too small
    spec = ring_sums.round_spec(made.manifest, 6, reference, 4, "wraps")
    total = ring_sums.RingSum(spec, 4)
    wraps = ring_sums.Wraps(total)
    for position, (delta, weight) in enumerate(zip(made.draw(1), made.units, strict=True)):
        wraps.add(position, ring_sums.rotated(spec, delta), weight, total.add(delta, weight))
    exact = ring_sums.rotated(spec, updates.weighted_mean(made.draw(1), made.units).astype(np.float32))
    opening = total.open()
    far = np.abs(ring_sums.rotated(spec, opening.mean) - exact)
    step = ring_sums.step_of(spec, spec.parts[0], 4) * WEIGHT_UNITS / sum(made.units)
    assert wraps.count == np.count_nonzero(far > 8 * step) > 0  # rounding alone: two steps
    assert not opening.accepted
