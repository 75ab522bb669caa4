"""Local training of one round: images and starting weights in, trained weights and a loss out.

Every random choice (order of the images, timesteps, noise) follows from the seed and the number of the step, never from
a generator's past. A checkpoint therefore needs no generator, and a training that was killed ends with exactly the
weights of one that was not (on the CPU; on CUDA up to the card's own rounding).
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedddpm.diffusion import Diffusion
from fedddpm.errors import ConfigError, DataError, TrainingError
from fedddpm.image_set import ImageSet, batches, to_floats
from fedddpm.training_state import Position, fingerprint, load_training, make_adam, save_training
from fedddpm.unet import UNet

_REPORT_EVERY = 10  # steps on an accelerator: asking for the loss makes the CPU wait for the card


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train in one round.

    Raises:
        ConfigError: a value makes no sense.
    """

    epochs: int = 1
    max_steps: int | None = None  # of the round, over all epochs
    batch_size: int = 128
    learning_rate: float = 1e-4
    max_seconds: float | None = None  # of training, the time before a resumption included
    checkpoint_every_steps: int | None = None
    checkpoint_every_s: float = 30.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value}"
            for name, value in asdict(self).items()
            if value is not None and not (math.isfinite(value) and value > 0)
        ]
        if wrong:
            raise ConfigError(f"training cannot run with {', '.join(wrong)}", "All these must be above zero")


@dataclass(frozen=True)
class Progress:
    """Where training is."""

    epoch: int  # from 0
    epochs: int
    step: int  # steps done
    steps_total: int
    loss: float  # of the last batch
    images_per_s: float  # since training began or was resumed


@dataclass(frozen=True)
class TrainOutcome:
    """What training came to."""

    samples: int  # images in the training set, the weight of this institution
    steps: int
    train_loss: float  # mean over the steps of the round
    seconds: float
    stopped_by: Literal["epochs", "max_steps", "max_seconds"]


def silent(progress: Progress) -> None:
    """Tell nobody."""


class Trainer:
    """Trains ``model`` in place on ``data``; Adam starts afresh each round and never leaves (paper, section 3).

    The model must hold the round's starting weights when the trainer is made; ``train`` always begins from them, or
    from a checkpoint that began from them. ``seed`` decides all randomness: the same for a round that is repeated.

    Raises:
        DataError: the images do not fit the model.
    """

    def __init__(self, model: UNet, data: ImageSet, device: torch.device, settings: TrainSettings, seed: int) -> None:
        wanted = model.architecture
        if (data.image_size, data.channels) != (wanted.image_size, wanted.channels):
            raise DataError(
                f"the images are {data.image_size}x{data.image_size} with {data.channels} channels, the network is for "
                f"{wanted.image_size}x{wanted.image_size} with {wanted.channels}",
                "Open the images with the image_size and channels of the network",
            )
        model.to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.model, self.device, self.settings, self.seed = model, device, settings, seed
        self.diffusion = Diffusion()
        self._images = data.images.to(device)  # as uint8: a quarter of the memory of floats, and copied once
        self._parameters = dict(model.named_parameters())
        self._start = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._steps_per_epoch = math.ceil(len(data) / settings.batch_size)
        self.steps_total = min(settings.epochs * self._steps_per_epoch, settings.max_steps or 2**63)

    def train(self, checkpoint: Path | None = None, on_progress: Callable[[Progress], None] = silent) -> TrainOutcome:
        """Train for one round, from ``checkpoint`` on if it belongs to this round, and keep it up to date.

        A checkpoint of other starting weights, images, settings or another seed is replaced. One of a finished round
        gives its outcome again, without a step.

        Raises:
            TrainingError: the loss or a weight is no finite number, or memory ran out.
            CheckpointError: the checkpoint cannot be written, or is damaged.
        """
        adam = make_adam(self._parameters, self.settings.learning_rate)
        position = self._begin(adam, checkpoint)
        try:
            self._run(adam, position, checkpoint, on_progress)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.device} does not hold a batch of {self.settings.batch_size}",
                "Lower batch_size, or train on a device with more memory",
            ) from error
        return TrainOutcome(
            samples=len(self._images),
            steps=position.step,
            train_loss=position.loss_sum.item() / position.step,
            seconds=position.seconds,
            stopped_by=self._stopped_by(position.step),
        )

    @torch.no_grad()
    def score(self, data: ImageSet) -> float:
        """Mean loss on ``data`` with noise and timesteps that are always the same, so that scores can be compared."""
        total = 0.0
        for first in range(0, len(data), self.settings.batch_size):
            x_0 = to_floats(data.images[first : first + self.settings.batch_size], self.device)
            generator = torch.Generator(self.device).manual_seed(_seed("score", first))
            total += self.diffusion.loss(self.model, x_0, generator).item() * len(x_0)
        return total / len(data)

    def _run(
        self,
        adam: torch.optim.Adam,
        position: Position,
        checkpoint: Path | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Step until a limit is met; ``position`` follows."""
        began, first_step, seconds_before, seen = time.monotonic(), position.step, position.seconds, 0
        saved_step, saved_at = position.step, began
        for epoch, x_0 in islice(self._batches_from(position.step), self.steps_total - position.step):
            if position.step and self._out_of_time(position):
                break
            loss = self._step(adam, x_0, position.step)
            position.loss_sum += loss
            position.step += 1
            seen += len(x_0)
            now = time.monotonic()
            position.seconds = seconds_before + now - began
            last = position.step == self.steps_total
            if self.device.type == "cpu" or position.step % _REPORT_EVERY == 0 or last:
                on_progress(self._progress(epoch, position, loss, seen / max(now - began, 1e-9)))
            if checkpoint is not None and not last and self._is_due(position.step - saved_step, now - saved_at):
                self._save(adam, position, checkpoint)
                saved_step, saved_at = position.step, time.monotonic()
        self._require_finite(position)
        if checkpoint is not None and position.step > first_step:
            self._save(adam, position, checkpoint)

    def _batches_from(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, floats [B, C, H, W]) from step number ``step`` to the end of the last epoch."""
        first_epoch, start = divmod(step, self._steps_per_epoch)
        for epoch in range(first_epoch, self.settings.epochs):
            order = torch.Generator().manual_seed(_seed(self.seed, "order", epoch))
            for x_0 in batches(self._images, self.settings.batch_size, order, self.device, start):
                yield epoch, x_0
            start = 0

    def _step(self, adam: torch.optim.Adam, x_0: Tensor, step: int) -> Tensor:
        """One gradient step on x_0 [B, C, H, W]; returns the loss, on the device."""
        generator = torch.Generator(self.device).manual_seed(_seed(self.seed, "noise", step))
        adam.zero_grad(set_to_none=True)
        loss = self.diffusion.loss(self.model, x_0, generator)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        adam.step()
        return loss.detach()

    def _progress(self, epoch: int, position: Position, loss: Tensor, rate: float) -> Progress:
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value} at step {position.step}")
        return Progress(epoch, self.settings.epochs, position.step, self.steps_total, value, rate)

    def _require_finite(self, position: Position) -> None:
        if not math.isfinite(position.loss_sum.item()):
            raise self._diverged("the loss became infinite or no number")
        broken = [name for name, p in self._parameters.items() if not p.isfinite().all()]
        if broken:
            raise self._diverged(f"weights became infinite or no numbers ({', '.join(broken[:3])})")

    def _diverged(self, happened: str) -> TrainingError:
        return TrainingError(
            happened,
            f"Lower the learning rate (it is {self.settings.learning_rate:g}) or look for broken images; "
            "nothing of this round has been sent",
        )

    def _is_due(self, steps: int, seconds: float) -> bool:
        every = self.settings.checkpoint_every_steps
        return (every is not None and steps >= every) or seconds >= self.settings.checkpoint_every_s

    def _out_of_time(self, position: Position) -> bool:
        return self.settings.max_seconds is not None and position.seconds >= self.settings.max_seconds

    def _stopped_by(self, step: int) -> Literal["epochs", "max_steps", "max_seconds"]:
        if step < self.steps_total:
            return "max_seconds"
        return "epochs" if step == self.settings.epochs * self._steps_per_epoch else "max_steps"

    def _save(self, adam: torch.optim.Adam, position: Position, path: Path) -> None:
        self._require_finite(position)
        save_training(path, self._name, self._parameters, adam, position)

    @torch.no_grad()
    def _begin(self, adam: torch.optim.Adam, path: Path | None) -> Position:
        """Put weights and moments where the checkpoint left them, or at the start of the round."""
        position = None if path is None else load_training(path, self._name, self._parameters, adam)
        if position is not None:
            return position
        for name, parameter in self._parameters.items():
            parameter.copy_(self._start[name])
        return Position(0, 0.0, torch.zeros((), dtype=torch.float64, device=self.device))

    @cached_property
    def _name(self) -> str:
        """Whatever decides this training's result, bit by bit; a time limit only decides where it has to stop."""
        s = self.settings
        decisive = (self.seed, s.epochs, s.max_steps, s.batch_size, s.learning_rate)
        return fingerprint(decisive, (*self._start.values(), self._images))


def _seed(*what: int | str) -> int:
    """A seed for one purpose: 63 bits of a hash, so that neighbouring steps get unrelated generators."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8]) >> 1
