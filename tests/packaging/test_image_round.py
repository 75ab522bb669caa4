"""A whole round in containers: on CPUs wherever an engine runs, on a GPU by `make e2e-gpu`.

The GPU test has never run: no host with an engine and NVIDIA's container toolkit was at hand. It is the same round as
the CPU test, with the CUDA image and the engine's options for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.packaging.container_round import MEMBERS, ContainerRound
from tests.packaging.containers import Engine, built, engine_or_skip

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]
GPU_OPTIONS = {"docker": ("--gpus=all",), "podman": ("--device=nvidia.com/gpu=all",)}
TRAINING = """
import sys, torch
from fedddpm.compute.device import pick_device
from fedddpm.data.image_set import ImageSet
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm.model.unet import UNet

device = pick_device(sys.argv[1])
torch.manual_seed(0)
images = torch.zeros((64, 1, 8, 8), dtype=torch.uint8)
images[:, :, 2:6, 2:6] = 255
data = ImageSet(images)
trainer = Trainer(UNet(8, 1, "tiny"), data, device, TrainSettings(4, None, 16, 1e-3, None), 0)
before = trainer.score(data)
trainer.train(None, lambda progress: None)
assert trainer.score(data) < before
print(device.type, torch.version.cuda)
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_or_skip() as engine:
        yield engine


@pytest.fixture(scope="module")
def gpu_engine(engine: Engine) -> Engine:
    """An engine that gives containers a GPU; only where `make e2e-gpu` asks, since the image has several gigabytes."""
    if not os.environ.get("FEDDDPM_E2E_GPU"):
        pytest.skip("FEDDDPM_E2E_GPU is not set: make e2e-gpu on a host with NVIDIA's container toolkit")
    tag = built(engine, "institution-cuda12")
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if not engine.succeeds("run", "--rm", *GPU_OPTIONS[engine.name], "--entrypoint=python", tag, "-c", code):
        pytest.fail(f"containers see no GPU: install NVIDIA's driver and container toolkit for {engine.name}")
    return engine


def train(engine: Engine, institution: str, device: str, gpu: tuple[str, ...] = ()) -> list[str]:
    """A few real training steps in the image; device and CUDA version that it used."""
    options = ("--entrypoint=python", "--network=none", *gpu)
    return engine.run(institution, "-c", TRAINING, device, options=options).split()


def one_round(engine: Engine, folder: Path, institution: str, device: str, gpu: tuple[str, ...] = ()) -> None:
    """Enrol, serve, take part; the opened sum must be that of all three."""
    federation = ContainerRound(engine, built(engine, "aggregator"), institution, folder, gpu)
    federation.enrol()
    federation.serve()
    federation.take_part(device)
    (line,) = federation.rounds()
    assert line["survivors"] == list(MEMBERS)
    assert line["reason"] is None
    assert line["model"]


def test_a_round_of_three_institutions_on_cpus(engine: Engine, tmp_path: Path) -> None:
    institution = built(engine, "institution-cpu")
    assert train(engine, institution, "cpu") == ["cpu", "None"]
    one_round(engine, tmp_path, institution, "cpu")


def test_the_health_check_notices_a_server_that_is_not_there(engine: Engine) -> None:
    said = engine.refused(built(engine, "aggregator"), "healthcheck", options=("--network=none",))
    assert "does not answer" in said


def test_an_institution_without_its_settings_says_so(engine: Engine) -> None:
    said = engine.refused(built(engine, "institution-cpu"), options=("--network=none",))
    assert "/etc/fedddpm/site.toml" in said
    assert "Traceback" not in said


@pytest.mark.gpu
def test_a_round_of_three_institutions_on_a_gpu(gpu_engine: Engine, tmp_path: Path) -> None:
    institution, gpu = built(gpu_engine, "institution-cuda12"), GPU_OPTIONS[gpu_engine.name]
    device, cuda = train(gpu_engine, institution, "cuda", gpu)
    assert device == "cuda"
    assert cuda.startswith("12.")
    one_round(gpu_engine, tmp_path, institution, "cuda", gpu)
