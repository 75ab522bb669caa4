"""Studies on a Ray cluster of two workers: the models of a study on this machine, whoever dies meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.sdk.experiment.test_study import Quiet
from tests.support.ray_cluster import frozen_workers, kill, ray_cluster

from fedddpm.errors import ConfigError
from fedddpm.experiment.design.images import ImageSource
from fedddpm.experiment.design.settings import StudySettings, build, read_settings
from fedddpm.experiment.results import read_results
from fedddpm.experiment.runs.ray_workers import RayWorkers
from fedddpm.experiment.study import Place, run_study

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SETTINGS = """
name = "ray"
methods = ["UDEC"]
institutions = [3]
networks = ["tiny"]
rounds = 2
batch_size = 4
sampler_steps = 2
grid = 4
data = "{data}"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(2) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a small study of made images."""
    rng = np.random.default_rng(0)
    images = {f"{split}_images": rng.integers(0, 256, (48, 16, 16), dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "noise.npz", **images)
    path = tmp_path / "study.toml"
    path.write_text(SETTINGS.format(data=tmp_path / "noise.npz"))
    return path


def settings_of(config: Path) -> StudySettings:
    return build(read_settings(config))


@pytest.mark.soak  # a minute: Ray starts, is hurt, and starts again
def test_a_study_whose_workers_are_killed_comes_to_the_same_models(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fedddpm", "experiment", "--config", str(config), "--out", "there"]
    command += ["--cache", "cache", "--device", "cpu", "--ray", cluster.address]
    with (tmp_path / "log").open("wb") as log:
        study = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    for worker in frozen_workers("train", 2, timeout_s=60):
        kill(worker)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has
    here = run_study(settings_of(config), Place(tmp_path / "here", tmp_path / "cache", device="cpu"), Quiet())
    torch.set_num_threads(threads)
    assert study.wait(timeout=100) == 0, (tmp_path / "log").read_text()
    there = read_results(tmp_path / "there")
    (one,), (other,) = here.runs, there.runs
    assert [record.model_hash for record in one.rounds] == [record.model_hash for record in other.rounds]
    assert [record.client_losses for record in one.rounds] == [record.client_losses for record in other.rounds]
    for record in one.rounds:
        assert record.grid is not None
        assert (tmp_path / "here" / record.grid).read_bytes() == (tmp_path / "there" / record.grid).read_bytes()


def test_what_the_cluster_has_no_room_for_is_refused(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    workers = RayWorkers(cluster.address, tmp_path, ImageSource.of(settings_of(config)), gpus=0.1)
    with pytest.raises(ConfigError, match=r"wants 0\.1 GPU, and the Ray cluster has 0"), workers:
        pass
