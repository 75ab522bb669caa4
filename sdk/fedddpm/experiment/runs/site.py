"""What one institution of a study does in a round: train, take over the new model, draw images.

Each is a job for any process: it reads the institution's folder and writes to it, atomically, and gives the same result
when it is done again. So a study that was killed goes on from the files.

    site-001/model-0003.safetensors        the whole network after three rounds
    site-001/model-0003.ema.safetensors    its average, where the study keeps one
    site-001/update.safetensors            what it learned in the fourth round
    site-001/residual.safetensors          what rounding took from it in the third, where that is made up for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedddpm.compute.device import pick_device
from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import CheckpointError
from fedddpm.evaluation.pixel_rescaling import Saving, as_saved
from fedddpm.experiment.design.images import ImageSource, open_source
from fedddpm.experiment.runs.workers import Tell
from fedddpm.generation.networks import load_network
from fedddpm.generation.sampling import sample_images_raw
from fedddpm.model.diffusion import Sampler
from fedddpm.model.ema import AverageState, average_file, load_average, save_average
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import PARTS, flatten
from fedddpm.model.unet import UNet
from fedddpm.training.held_out_loss import held_out_loss
from fedddpm.training.settings import Progress
from fedddpm.updates.adoption import adopt_round
from fedddpm.updates.error_feedback import ErrorFeedback, Summed
from fedddpm.updates.local_training import train_update
from fedddpm.updates.local_update import LocalUpdate
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.spec import RoundSpec

_LOSS_BATCH = 128  # decides the noise of a loss, so it is the same in all studies


def model_file(folder: Path, rounds: int) -> Path:
    """The network after so many rounds."""
    return folder / f"model-{rounds:04d}.safetensors"


def is_kept(path: Path, *, averaged: bool) -> bool:
    """Whether the network, and its average if there is to be one, are on disk."""
    return path.exists() and (not averaged or average_file(path).exists())


@dataclass(frozen=True)
class Site:
    """An institution of a run."""

    name: str
    folder: Path
    source: ImageSource
    share: npt.NDArray[np.int64]  # indices of its training images
    loss_images: int  # of the test images
    seed: int
    device: str
    averaged: bool

    def images(self) -> tuple[ImageSet, ImageSet]:
        """Its training images, and the test images on which every institution measures its loss."""
        train, test = open_source(self.source)
        return train.subset(self.share), test.subset(np.arange(min(self.loss_images, len(test))))

    def average(self, rounds: int, model: UNet) -> AverageState | None:
        """The average after so many rounds, if the study keeps one."""
        return load_average(average_file(model_file(self.folder, rounds)), model) if self.averaged else None


@dataclass(frozen=True)
class TrainJob:
    """Train from the base of ``spec``."""

    site: Site
    spec: RoundSpec
    learning: LearningOptions
    base: Path | None = None  # a network with the base model, where the institution's own does not hold it


@dataclass(frozen=True)
class Trained:
    """What is told of a finished training; the update itself lies in the folder."""

    samples: int
    loss_before: float
    loss_after: float
    seconds: float


def train(job: TrainJob, tell: Tell) -> Trained:
    """Train for one round and store the update; at once if it is stored already."""
    site, spec = job.site, job.spec
    update = stored_update(site, spec)
    if update is None:
        model = load_network(model_file(site.folder, spec.round), "model")
        store = UpdateStore(site.folder)
        update = train_update(
            model,
            spec,
            site.images(),
            pick_device(site.device),
            LocalPolicyOptions(),
            site.seed,
            store.checkpoint,
            lambda progress: tell(_share(progress)),
            learning=job.learning,
            average=site.average(spec.round, model),
            base=None if job.base is None else flatten(load_network(job.base, "model"), PARTS),
        )
        if job.learning.error_feedback:
            update = ErrorFeedback(site.folder, site.name).added_to(update, spec.parts)
        store.save(update)
    tell(1.0)
    return Trained(update.samples, update.loss_before, update.loss_after, update.seconds)


def stored_update(site: Site, spec: RoundSpec) -> LocalUpdate | None:
    """The update of this round, if it was trained already."""
    return UpdateStore(site.folder).load(spec.base_model_hash, spec.terms.hash)


def _share(progress: Progress) -> float:
    return min(progress.step / progress.steps_total, 0.999)


@dataclass(frozen=True)
class AdoptJob:
    """Take over the shared parts that a round opened."""

    site: Site
    spec: RoundSpec
    shared: Path  # .npy: float32, the next shared parts in manifest order
    scored: bool  # whether to measure the loss of the result
    opened: Mapping[str, Summed] | None = None  # where what rounding took is kept for the next round


def adopt(job: AdoptJob, tell: Tell) -> float | None:
    """Write the network after the round, also over that of an unfinished try; its loss on the test images."""
    site, spec = job.site, job.spec
    path = model_file(site.folder, spec.round + 1)
    update = stored_update(site, spec)
    if update is None:
        raise CheckpointError(f"{site.folder} has lost the update of round {spec.round + 1}", "Run the study again")
    model = load_network(model_file(site.folder, spec.round), "model")
    shared = np.load(job.shared, allow_pickle=False)
    average = adopt_round(model, Method(spec.method), shared, update, summed=spec.summed)
    if average is not None:
        save_average(average_file(path), model, average)
    save_model(path, model)
    if job.opened is not None:
        ErrorFeedback(site.folder, site.name).after(spec.run, spec.round, spec.round + 1, update, spec, job.opened)
    loss = measure_loss(model, site.images()[1], site.device) if job.scored else None
    tell(1.0)
    return loss


def measure_loss(model: UNet, images: ImageSet, device: str) -> float:
    """Loss on ``images`` with noise that is always the same; ``model`` is moved to ``device``."""
    where = pick_device(device)
    model.to(where)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return held_out_loss(model, images, where, _LOSS_BATCH)


@dataclass(frozen=True)
class DrawJob:
    """Draw images from the network in a file."""

    path: Path
    start: int  # number of the first image, a multiple of the sampler's batch
    count: int
    averaged: bool
    sampler: Sampler
    steps: int | None
    seed: int
    guidance: float
    savings: tuple[Saving, ...]
    device: str


def draw(job: DrawJob, tell: Tell) -> dict[Saving, npt.NDArray[np.uint8]]:
    """Images [count, C, H, W] for every way of saving."""
    model = load_network(job.path, "ema" if job.averaged else "model")
    images = sample_images_raw(
        model,
        job.count,
        sampler=job.sampler,
        steps=job.steps,
        seed=job.seed,
        device=pick_device(job.device),
        guidance=job.guidance,
        start=job.start,
        on_progress=lambda done, total: tell(min(done / total, 0.999)),
    )
    tell(1.0)
    return {how: as_saved(images, how).numpy() for how in job.savings}
