"""One rank of test_distributed, where torchrun says so: ``python rank_worker.py FOLDER kill|resume``."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import FedDDPMError, StateError
from fedddpm.model.partition import PARTS, flatten
from fedddpm.model.unet import UNet
from fedddpm.training.distributed import Place, follow, open_distributed
from fedddpm.training.settings import TrainOutcome, TrainSettings
from fedddpm.training.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9, checkpoint_every_steps=2)
KILLED_AT = 4  # of 6 steps


def images() -> ImageSet:
    """Batches of 4, 4 and 1: the last is smaller than the number of ranks."""
    pixels = torch.randint(0, 256, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(9) % 2)


def trainer(settings=SETTINGS, **options):
    torch.manual_seed(0)
    return Trainer(UNet(8, 1, "tiny", classes=2), images(), CPU, settings, seed=2**200, **options)


def result(one: Trainer, outcome: TrainOutcome) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights, their average, loss."""
    return torch.from_numpy(flatten(one.model, PARTS)), torch.from_numpy(one.average_state().vector), outcome.train_loss


def lead(share, folder, what):
    if what == "kill":
        kill = lambda progress: os.kill(os.getpid(), signal.SIGKILL) if progress.step == KILLED_AT else None  # noqa: E731
        trainer(share=share).train(folder / "training.safetensors", kill)
        return
    for name, path in (("resumed", folder / "training.safetensors"), ("whole", None)):
        one, steps = trainer(share=share), []
        outcome = one.train(path, lambda progress, steps=steps: steps.append(progress.step))
        weights, average, loss = result(one, outcome)
        torch.save({"weights": weights, "average": average, "loss": loss, "steps": steps}, folder / f"{name}.pt")
    short = trainer(replace(SETTINGS, max_seconds=1e-9), share=share).train()
    (folder / "short.json").write_text(json.dumps([short.steps, short.stopped_by]))
    raise StateError("the disk is full")


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    place = Place.here()
    try:
        with open_distributed(place, CPU, images()) as share:
            lead(share, folder, what) if place.leads else follow(share, images(), CPU)
    except FedDDPMError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
