"""The terms of a training: all that decides what an institution's update on a given base model becomes.

An institution trains once on a base model, under one set of terms (see ``spent``). What only decides how the update
travels (ring, rotation, phases, attempt, roster) is none of them. Among them is a recipe: which optimizer follows the
gradient, and how the learning rate moves over a run.

``paper`` is the training of the published method (arXiv 2406.12575): Adam, the same rate in all steps of a round.
``modern`` moves matrices by Muon (Jordan et al. 2024) and everything else by AdamW (Loshchilov and Hutter 2019), cuts
long gradients, warms up, and lets the rate fall evenly over all steps of the run.

What becomes of the mean update is agreed as well: the outer optimizer. By default the mean is added as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedddpm_protocol.agreement.model_layout import require
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import added_later, tagged_hash

CONSTANT, LINEAR, OVER_STEPS = "constant", "linear", "over-steps"
PAPER, MODERN = "paper", "modern"


@dataclass(frozen=True)
class Recipe:
    """What a recipe's name stands for."""

    optimizer: str
    schedules: tuple[str, ...]  # that it can have; the first where the coordinator does not choose
    warm_up: float  # of the run's steps, in which the learning rate rises evenly from 0
    gradient_clip: float  # largest L2 norm of a step's gradient; 0: none is cut
    learning_rate: float  # where the coordinator does not choose
    clip_norm: float  # largest L2 norm of an institution's update, where the coordinator does not choose
    first_bits: int  # ring of the first sum, sized by the clip norm alone, where weights are equal; likewise

    def rate(self, round_index: int, rounds: int, done: float) -> float:
        """The factor of the round's learning rate when the share ``done`` of its steps, in [0, 1), is done.

        1 in all steps of a round, or falling so that the next round goes on where this one ends, down to 0 with the
        run's last step.
        """
        if OVER_STEPS not in self.schedules:
            return 1.0
        falling = 1 - done / (rounds - round_index)
        rising = (round_index + done) / rounds / self.warm_up if self.warm_up else 1.0
        return falling * min(1.0, rising)


# Muon moves every matrix by a length of its own, so updates are long from the first round on: norms of 43 to 88 were
# measured. At 100, the largest that institutions allow by default, none is cut; later rounds follow the last mean. An
# update so near its clip norm needs fewer bits in the first sum than one of Adam's, which is often a thousandth of it.
RECIPES = {
    PAPER: Recipe("adam", (CONSTANT, LINEAR), 0.0, 0.0, learning_rate=1e-4, clip_norm=10.0, first_bits=24),
    MODERN: Recipe("muon-adamw", (OVER_STEPS,), 0.05, 1.0, learning_rate=4e-3, clip_norm=100.0, first_bits=16),
}


MOST_MOMENTUM = 0.9  # with it the model moves ten times as far as one mean, at most: still a bound that says something
LEAST_OUTER_RATE = 0.01  # float32 models tell the mean behind a step of less no more, nor an institution's share in it


@dataclass(frozen=True)
class OuterOptimizer:
    """How the mean update of a round moves the model that the next round begins with (arXiv 2311.08105).

    The averaged model ``z`` is the base model and ``learning_rate`` times the mean update; the next base model lies
    beyond it, by ``momentum`` times the way from the averaged model before it: Nesterov's accelerated gradient in the
    form of two sequences, which is SGD with Nesterov momentum over the means. A run ends with its averaged model.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        require(
            LEAST_OUTER_RATE <= self.learning_rate <= 1,
            f"an outer learning rate of {self.learning_rate:g} is outside [{LEAST_OUTER_RATE:g}, 1]: above 1 the model"
            " leaves what clipped updates span, far below it no mean can be told from the model",
        )
        require(
            0 <= self.momentum <= MOST_MOMENTUM,
            f"an outer momentum of {self.momentum:g} is outside [0, {MOST_MOMENTUM:g}]: with it a model would move"
            f" further than {1 / (1 - MOST_MOMENTUM):.0f} times what clipped updates can",
        )


PLAIN_MEAN = OuterOptimizer()


@dataclass(frozen=True)
class TrainingTerms:
    """What a round asks of a training, beside the base model itself."""

    method: str
    architecture_hash: bytes
    initial_model_hash: bytes  # theta_0, which the parts that stay at home began with
    weighting: str
    weight_cap: int
    clip_norm: float
    epochs: int
    max_steps: int
    batch_size: int
    learning_rate: float
    charter_hash: bytes = added_later(b"")  # what the root signed of the training beside these, least work among it
    recipe: str = added_later(PAPER)

    @property
    def hash(self) -> bytes:
        """32 bytes that name these terms."""
        return tagged_hash("terms", canonical.encode(self))
