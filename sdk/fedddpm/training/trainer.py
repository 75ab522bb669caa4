"""Local training of one round: images and starting weights in, trained weights and a loss out.

Every random choice (order of the images, timesteps, noise, hidden labels) follows from the seed and the number of the
step, never from a generator's past. A checkpoint therefore needs no generator, and a training that was killed ends with
exactly the weights of one that was not (on the CPU; on CUDA up to the card's own rounding).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedddpm.compute.acceleration import tuned_kernels
from fedddpm.compute.seeds import generator_for
from fedddpm.data.image_set import ImageSet, require_fit
from fedddpm.errors import TrainingError
from fedddpm.model.ema import AverageState, WeightAverage
from fedddpm.model.unet import UNet
from fedddpm.training.batches import Batch, Batches
from fedddpm.training.checkpoint import Position, fingerprint, load_training, moments, save_training
from fedddpm.training.first_gradient import require_ordinary
from fedddpm.training.held_out_loss import held_out_loss
from fedddpm.training.optimizers import make_optimizer
from fedddpm.training.ranks import ALONE, RankShare
from fedddpm.training.settings import Progress, TrainOutcome, TrainSettings, silent
from fedddpm.training.stopwatch import Stopwatch
from fedddpm.training.train_step import TrainStep
from fedddpm_protocol.agreement.terms import PAPER, RECIPES

_REPORT_EVERY = 10  # steps on an accelerator: asking for the loss makes the CPU wait for the card


class Trainer:
    """Trains ``model`` in place on ``data``; the optimizer starts afresh each round and never leaves (section 3).

    The model must hold the round's starting weights when the trainer is made; ``train`` always begins from them, or
    from a checkpoint that began from them. ``seed`` decides all randomness, with as many bits as it has: the same for a
    round that is repeated.
    ``average`` is where the average of the weights goes on, by default it begins with the weights; ``share`` is what
    this process does where several train together.

    Raises:
        DataError: the images or their labels do not fit the model.
        ModelError: ``average`` belongs to another network.
    """

    def __init__(
        self,
        model: UNet,
        data: ImageSet,
        device: torch.device,
        settings: TrainSettings,
        seed: int,
        average: AverageState | None = None,
        share: RankShare = ALONE,
    ) -> None:
        require_fit(data, model.architecture)
        model.to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.model, self.device, self.settings, self.seed = model, device, settings, seed
        self._share, self._data = share, data
        self._feed = Batches(data, settings.batch_size, device, labelled=bool(model.architecture.classes))
        self._parameters = dict(model.named_parameters())
        self._start = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._average = None if settings.ema_decay is None else WeightAverage(model, settings.ema_decay, average)
        self._average_start = None if self._average is None else self._average.state()
        self._steps_per_epoch = math.ceil(len(data) / settings.batch_size)
        self.steps_total = min(settings.epochs * self._steps_per_epoch, settings.max_steps or 2**63)
        whole = min(settings.batch_size, len(data))
        self._stepper = TrainStep(model, device, settings, whole, self.steps_total, share)

    def train(
        self,
        checkpoint: Path | None = None,
        on_progress: Callable[[Progress], None] = silent,
        on_epoch: Callable[[int], None] | None = None,
    ) -> TrainOutcome:
        """Train for one round, from ``checkpoint`` on if it belongs to this round, and keep it up to date.

        A checkpoint of other starting weights, images, settings or another seed is replaced. One of a finished round
        gives its outcome again, without a step. ``on_epoch`` is told the epochs done after each whole one, and again
        when a training is resumed just there; the time it takes does not count.

        Raises:
            TrainingError: the loss or a weight is no finite number, or memory ran out.
            PolicyError: the first gradient is too small, see ``first_gradient``; nothing was trained.
            CheckpointError: the checkpoint cannot be written, or is damaged.
            ConfigError: the network was to be compiled, and cannot be.
        """
        self._share.announce(self._job)
        optimizer = make_optimizer(self._parameters, self.settings.learning_rate, self.settings.recipe)
        position = self._begin(optimizer, checkpoint)
        try:
            with tuned_kernels(self.device):
                self.prepare()
                self._run(optimizer, position, checkpoint, on_progress, on_epoch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.device} does not hold a batch of {self.settings.batch_size}",
                "Lower batch_size, or train on a device with more memory",
            ) from error
        return TrainOutcome(
            samples=len(self._data),
            steps=position.step,
            train_loss=position.loss_sum.item() / position.step,
            seconds=position.seconds,
            stopped_by=self._stopped_by(position.step),
        )

    def average_state(self) -> AverageState | None:
        """The average of the weights as it is now; None where none is kept."""
        return None if self._average is None else self._average.state()

    def score(self, data: ImageSet, on_batch: Callable[[], None] = lambda: None) -> float:
        """Mean loss on ``data``, as :func:`held_out_loss`."""
        return held_out_loss(self.model, data, self.device, self.settings.batch_size, on_batch)

    def prepare(self) -> None:
        """Compile the network if that is wanted; ``train`` does it, measurements of single steps do it themselves."""
        self._stepper.prepare()

    def _run(
        self,
        optimizer: torch.optim.Optimizer,
        position: Position,
        checkpoint: Path | None,
        on_progress: Callable[[Progress], None],
        on_epoch: Callable[[int], None] | None,
    ) -> None:
        """Step until a limit is met; ``position`` follows."""
        watch, first_step = Stopwatch(position.seconds), position.step
        saved_step, saved_at = position.step, position.seconds
        self._tell_epoch(position, on_epoch, watch)
        for epoch, batch in islice(self._batches_from(position.step), self.steps_total - position.step):
            if position.step and self._out_of_time(position):
                break
            loss = self._step(optimizer, batch, position.step)
            position.loss_sum += loss
            position.step += 1
            position.seconds = watch.seconds
            last = position.step == self.steps_total
            watch.count(len(batch.x_0))
            if self.device.type == "cpu" or position.step % _REPORT_EVERY == 0 or last:
                on_progress(self._progress(epoch, position, loss, watch.rate))
            if checkpoint is not None and not last and self._is_due(position, saved_step, saved_at):
                self._save(optimizer, position, checkpoint)
                saved_step, saved_at = position.step, watch.seconds
            self._tell_epoch(position, on_epoch, watch)
        self._require_finite(position)
        if checkpoint is not None and position.step > first_step:
            self._save(optimizer, position, checkpoint)

    def _batches_from(self, step: int) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) from step number ``step`` to the end of the last epoch."""
        first_epoch, start = divmod(step, self._steps_per_epoch)
        for epoch in range(first_epoch, self.settings.epochs):
            order = generator_for(torch.device("cpu"), self.seed, "order", epoch)
            for batch in self._feed.epoch(order, start):
                yield epoch, batch
            start = 0

    def _step(self, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> Tensor:
        """One gradient step, and the average follows it; returns the loss, on the device."""
        generator = generator_for(self.device, self.seed, "noise", step)
        for group in optimizer.param_groups:
            group["lr"] = self._rate_at(step)
        if step:
            loss = self._stepper.step(optimizer, batch, generator)
        else:
            loss = self._stepper.step(optimizer, batch, generator, lambda: self._look_at_gradient(optimizer))
        if self._average is not None:
            self._average.update()
        return loss

    def _rate_at(self, step: int) -> float:
        """The learning rate in the middle of a step, counted from 0 in the round: no step moves nothing."""
        s = self.settings
        return s.learning_rate * RECIPES[s.recipe].rate(s.round, s.rounds, (step + 0.5) / self.steps_total)

    def _look_at_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """PolicyError where the first gradient is one that Adam passes on as it is."""
        if self.settings.max_small_gradients < 1:
            require_ordinary(self._parameters, optimizer.defaults["eps"], self.settings.max_small_gradients)

    def _tell_epoch(self, position: Position, on_epoch: Callable[[int], None] | None, watch: Stopwatch) -> None:
        epochs, rest = divmod(position.step, self._steps_per_epoch)
        if on_epoch is not None and epochs and not rest:
            self._require_finite(position)
            with watch.paused():
                on_epoch(epochs)

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

    def _is_due(self, position: Position, saved_step: int, saved_at: float) -> bool:
        every = self.settings.checkpoint_every_steps
        late = position.seconds - saved_at >= self.settings.checkpoint_every_s
        return late or (every is not None and position.step - saved_step >= every)

    def _out_of_time(self, position: Position) -> bool:
        limit = self.settings.max_seconds
        return limit is not None and self._share.agree(position.seconds >= limit)

    def _stopped_by(self, step: int) -> Literal["epochs", "max_steps", "max_seconds"]:
        if step < self.steps_total:
            return "max_seconds"
        return "epochs" if step == self.settings.epochs * self._steps_per_epoch else "max_steps"

    def _save(self, optimizer: torch.optim.Optimizer, position: Position, path: Path) -> None:
        self._require_finite(position)
        save_training(path, self._name, self._parameters, self._shadow, optimizer, position)

    @torch.no_grad()
    def _begin(self, optimizer: torch.optim.Optimizer, path: Path | None) -> Position:
        """Put weights, average and moments where the checkpoint left them, or at the start of the round."""
        position = None
        if path is not None:
            position = load_training(path, self._name, self._parameters, self._shadow, optimizer)
        if position is None:
            position = Position(0, 0.0, torch.zeros((), dtype=torch.float64, device=self.device))
            for name, parameter in self._parameters.items():
                parameter.copy_(self._start[name])
            if self._average is not None and self._average_start is not None:
                self._average.take(self._average_start)
        self._spread(optimizer, position)
        if self._average is not None and self._average_start is not None:
            self._average.updates = self._average_start.updates + position.step
        return position

    def _spread(self, optimizer: torch.optim.Optimizer, position: Position) -> None:
        """Start all ranks from what rank 0 has."""
        if self._share.world == 1:
            return
        place = torch.tensor([position.step, position.seconds], dtype=torch.float64, device=self.device)
        weights = (*self._parameters.values(), *self._shadow.values())
        self._share.spread((*weights, *moments(self._parameters, optimizer), position.loss_sum, place))
        position.step, position.seconds = int(place[0]), float(place[1])

    @property
    def _shadow(self) -> Mapping[str, Tensor]:
        return {} if self._average is None else self._average.shadow

    @property
    def _job(self) -> str:
        """What the other ranks must know to make the same trainer."""
        architecture, settings = asdict(self.model.architecture), asdict(self.settings)
        return json.dumps({"architecture": architecture, "settings": settings, "seed": self.seed})

    @cached_property
    def _name(self) -> str:
        """Whatever decides this training's result, bit by bit; a time limit only decides where it has to stop."""
        s = self.settings
        decisive: list[float | int | str | None] = [self.seed, s.epochs, s.max_steps, s.batch_size, s.learning_rate]
        decisive += [self._stepper.precision, self._stepper.compiles]
        tensors = [*self._start.values(), self._data.images]
        if self.model.architecture.classes and self._data.labels is not None:
            decisive += ["labels", s.label_dropout]
            tensors.append(self._data.labels)
        if s.recipe != PAPER or s.flips:
            decisive += ["recipe", s.recipe, s.round, s.rounds, s.flips]
        if self._average_start is not None:
            decisive += ["average", s.ema_decay, self._average_start.updates]
            tensors.append(torch.from_numpy(self._average_start.vector))
        return fingerprint(decisive, tensors)
