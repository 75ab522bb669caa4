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
from fedddpm_protocol.agreement.spec import RoundSpec

_ASK = "Ask the federation's coordinator for more epochs or steps a round, or lower the setting if you know why"


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

    def shortfall(self, policy: LocalPolicyOptions) -> str:
        """What is below the floors of ``policy``, with both numbers and the setting; empty where nothing is."""
        floors = (
            ("steps", self.steps, policy.min_steps, "min_steps"),
            ("images seen", self.images_seen, policy.min_images_seen, "min_images_seen"),
        )
        low = [
            f"{has} {what} and your policy wants {least} ({name})" for what, has, least, name in floors if has < least
        ]
        return ", ".join(low)


def step_limit(spec: RoundSpec, policy: LocalPolicyOptions) -> int | None:
    """Most steps of a round: what it asks for, or what the institution allows where that is less; None: no limit."""
    return min((limit for limit in (spec.max_steps, policy.max_steps) if limit), default=None)


def planned_work(spec: RoundSpec, images: int, policy: LocalPolicyOptions) -> WorkDone:
    """What a training of ``spec`` on so many images comes to, if no time limit ends it."""
    steps = spec.epochs * math.ceil(images / spec.batch_size)
    return WorkDone.of(min(steps, step_limit(spec, policy) or steps), images, spec.batch_size)


def require_enough_work(spec: RoundSpec, images: int, policy: LocalPolicyOptions) -> None:
    """PolicyError where ``images`` to train on, or what ``spec`` makes of them, are below the institution's floors."""
    if images < policy.min_images:
        raise PolicyError(
            f"there are {images} images to train on and your policy wants {policy.min_images} (min_images): of so few"
            " an update shows too much",
            "Take part with more images, or lower the setting if you know why",
        )
    if low := planned_work(spec, images, policy).shortfall(policy):
        raise PolicyError(f"behind the update of round {spec.round + 1} would be {low}; nothing was sent", _ASK)
