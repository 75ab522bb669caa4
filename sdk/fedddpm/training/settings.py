"""What a training is given, and what it tells."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedddpm.compute.acceleration import Precision
from fedddpm.errors import ConfigError
from fedddpm_protocol.agreement.terms import PAPER


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
    ema_decay: float | None = None  # of the average of the weights a step; None: no average is kept
    label_dropout: float = 0.1  # share of labels hidden from a network with classes, so that guidance works
    precision: Precision = "auto"  # of the network's forward pass; auto: bfloat16 on CUDA, float32 on the CPU
    compile: bool | None = None  # None: on CUDA, where the training is long enough to gain by it
    recipe: str = PAPER
    round: int = 0  # from 0, of so many: where the learning rate of a recipe follows the run
    rounds: int = 1
    flips: bool = False  # mirror images left to right, each by chance
    max_small_gradients: float = 1.0  # share of the first gradient below Adam's epsilon; see ``first_gradient``

    def __post_init__(self) -> None:
        positive = {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "max_seconds": self.max_seconds,
            "checkpoint_every_steps": self.checkpoint_every_steps,
            "checkpoint_every_s": self.checkpoint_every_s,
        }
        wrong = [
            f"{name}={value}"
            for name, value in positive.items()
            if value is not None and not (math.isfinite(value) and value > 0)
        ]
        if wrong:
            raise ConfigError(f"training cannot run with {', '.join(wrong)}", "All these must be above zero")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"the average cannot be kept with ema_decay={self.ema_decay}", "Use for instance 0.995")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"label_dropout={self.label_dropout} is no share", "Use for instance 0.1")
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"there is no precision {self.precision!r}", f"Choose one of {', '.join(get_args(Precision))}"
            )


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
