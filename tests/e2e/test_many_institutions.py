"""A study of a thousand institutions: tasks on a Ray cluster, one secure sum in eight shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.ray_cluster import ray_cluster

from fedddpm.experiment.results import read_results

INSTITUTIONS = 1000


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_institutions_end_a_round(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), {"train": 12 * INSTITUTIONS, "test": 64}
    images = {f"{split}_images": rng.integers(0, 256, (n, 16, 16), dtype=np.uint8) for split, n in count.items()}
    np.savez(tmp_path / "noise.npz", **images)
    settings = {"name": "many", "methods": ["UDEC"], "institutions": [INSTITUTIONS], "networks": ["tiny"], "rounds": 1}
    settings |= {"batch_size": 8, "grid": 0, "loss_images": 16, "data": str(tmp_path / "noise.npz")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "study.toml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "fedddpm", "experiment", "--config", "study.toml", "--out", "out"]
    command += ["--cache", "cache", "--device", "cpu"]
    with ray_cluster(2) as cluster:
        subprocess.run([*command, "--ray", cluster.address], cwd=tmp_path, check=True)
    (run,) = read_results(tmp_path / "out").runs
    assert run.aggregation == "secure"
    assert run.rounds[0].survivors == INSTITUTIONS
    print(f"aggregation of {INSTITUTIONS}: {run.rounds[0].aggregation_s:.0f} s; whole study {run.seconds:.0f} s")
