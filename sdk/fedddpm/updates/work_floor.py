"""The least amount of work that must lie behind an update, whoever signed the round.

One step on a few images is next to nothing but their gradient, which shows them where a model was made for it (Zhu
2019, arXiv 1906.08935; figures in ``docs/results/attacks.md``). What counts is how many images' gradients are added
up, and over how many steps; both are known before the training, from what is asked for and the number of own images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm_protocol.agreement.charter import TrainingRules
from fedddpm_protocol.agreement.spec import RoundSpec

_ASK = "Ask the federation's coordinator for more epochs or steps a round, or lower the setting if you know why"


@dataclass(frozen=True)
class WorkFloor:
    """The least that must lie behind an update: the institution's own, or the charter's where that is more."""

    images: int  # own ones, to take part at all
    steps: int
    images_seen: int
    chartered: frozenset[str]  # settings in which the charter's is the higher one

    @classmethod
    def of(cls, policy: LocalPolicyOptions, training: TrainingRules) -> WorkFloor:
        """What both want."""
        signed = {"min_images": training.min_images, "min_steps": training.min_steps}
        higher = frozenset(name for name, least in signed.items() if least > getattr(policy, name))
        return cls(
            max(policy.min_images, training.min_images),
            max(policy.min_steps, training.min_steps),
            policy.min_images_seen,
            higher,
        )

    def whose(self, name: str) -> str:
        """Who wants the floor of a setting."""
        return "the charter" if name in self.chartered else "your policy"


@dataclass(frozen=True)
class WorkDone:
    """What lies behind an update."""

    steps: int
    images_seen: int  # as often as each was seen

    @classmethod
    def of(cls, steps: int, images: int, batch_size: int) -> WorkDone:
        """``steps`` of batches of ``images`` that are gone through time and again; an epoch's last batch is smaller."""
        epochs, rest = divmod(steps, math.ceil(images / batch_size))
        return cls(steps, epochs * images + rest * min(batch_size, images))

    def shortfall(self, floor: WorkFloor) -> str:
        """What is below ``floor``, with both numbers and the setting; empty where nothing is."""
        floors = (
            ("steps", self.steps, floor.steps, "min_steps"),
            ("images seen", self.images_seen, floor.images_seen, "min_images_seen"),
        )
        low = [
            f"{has} {what} and {floor.whose(name)} wants {least} ({name})"
            for what, has, least, name in floors
            if has < least
        ]
        return ", ".join(low)


def step_limit(spec: RoundSpec, policy: LocalPolicyOptions) -> int | None:
    """Most steps of a round: what it asks for, or what the institution allows where that is less; None: no limit."""
    return min((limit for limit in (spec.max_steps, policy.max_steps) if limit), default=None)


def planned_work(spec: RoundSpec, images: int, policy: LocalPolicyOptions) -> WorkDone:
    """What a training of ``spec`` on so many images comes to, if no time limit ends it."""
    steps = spec.epochs * math.ceil(images / spec.batch_size)
    return WorkDone.of(min(steps, step_limit(spec, policy) or steps), images, spec.batch_size)


def require_enough_work(spec: RoundSpec, training: TrainingRules, images: int, policy: LocalPolicyOptions) -> None:
    """PolicyError where ``images`` to train on, or what ``spec`` makes of them, are below the floors."""
    floor = WorkFloor.of(policy, training)
    if images < floor.images:
        raise PolicyError(
            f"there are {images} images to train on and {floor.whose('min_images')} wants {floor.images} (min_images):"
            " of so few an update shows too much",
            "Take part with more images, or lower the setting if you know why",
        )
    if low := planned_work(spec, images, policy).shortfall(floor):
        raise PolicyError(f"behind the update of round {spec.round + 1} would be {low}; nothing was sent", _ASK)
