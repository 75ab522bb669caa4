"""Scores at the end of a run: each image goes through a net once, and every number is that of its own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedddpm.data.image_set import ImageSet
from fedddpm.evaluation.features import Features
from fedddpm.evaluation.reference import open_reference
from fedddpm.evaluation.scores import score
from fedddpm.experiment.design.settings import build
from fedddpm.experiment.runs.scoring import Meter, Scorer, Where, _pool
from fedddpm.experiment.runs.workers import LocalWorkers
from fedddpm.model.model_files import save_model
from fedddpm.model.unet import UNet

SITES = ("site-001", "site-002", "site-003")


class CountingNet:
    """Four means of an image as its features, and how many images it was given."""

    name, source, digest, width, is_inception = "quarters-4", "made up", "00", 4, False

    def __init__(self) -> None:
        self.seen = 0

    def extract(self, images: Tensor, on_progress: object = None) -> Features:
        self.seen += len(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2)
        features: Features = quarters.flatten(1).numpy()
        return features


@pytest.fixture
def meter(tmp_path: Path) -> Meter:
    generator = torch.Generator().manual_seed(3)
    real = [ImageSet(torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=generator)) for _ in range(2)]
    settings = build(
        {"methods": ["UDEC"], "institutions": [3], "networks": ["tiny"], "final_samples": [30, 60]},
        {"sampler": "ddim", "sampler_steps": 2, "saving": ["rescaled", "clipped"]},
    )
    net = CountingNet()
    meter = Meter(settings, LocalWorkers(1), "cpu", [Scorer(net, open_reference(net, *real, tmp_path / "cache"))])
    net.seen = 0
    return meter


def networks(folder: Path, local: bool) -> Where:
    folders = {}
    for site in SITES if local else SITES[:1]:
        folders[site] = folder / site
        folders[site].mkdir()
        save_model(folders[site] / "model-0001.safetensors", UNet(8, 1, "tiny"))
    return Where(folders, 1, 1, local, 0)


@pytest.mark.parametrize("local", [True, False])
def test_each_image_goes_through_a_net_once(meter: Meter, tmp_path: Path, local: bool) -> None:
    told: list[str] = []
    where = networks(tmp_path, local)
    for count in (10, 20, 30, 60):  # of real images, which are seen before
        meter.rulers[0].reference.floor(count)
    meter.rulers[0].net.seen = 0
    with meter.workers:
        found = meter.at_the_end(where, lambda what, share: told.append(what))
    assert meter.rulers[0].net.seen == 2 * 60  # saved in two ways
    numbers = [(30, "rescaled"), (60, "rescaled"), (30, "clipped"), (60, "clipped")]
    assert [(one.pooled.n, one.pooled.saving) for one in found] == numbers
    own = [{10}, {20}] if local else [set(), set()]
    assert [{scores.n for scores in one.clients.values()} for one in found] == 2 * own
    assert "final images" in told


def test_scores_are_those_of_their_own_images(meter: Meter, tmp_path: Path) -> None:
    where, ruler = networks(tmp_path, True), meter.rulers[0]
    with meter.workers:
        found = meter.at_the_end(where, lambda what, share: None)
        pictures = meter._draw(where, 20, 1_000_000, ("rescaled",), lambda number, share: None)
    first = score(ruler.net, ruler.reference, torch.from_numpy(_pool(pictures, "rescaled", 30)), seed=0)
    assert found[0].pooled == first
    for name in SITES:
        images = torch.from_numpy(np.ascontiguousarray(pictures[name]["rescaled"][:20]))
        assert found[1].clients[name] == score(ruler.net, ruler.reference, images, companions=False, seed=0)
