"""What stands between a lying aggregator and the images, each with the way to switch it off.

A test of a defence plays an attack with all others switched off: what is refused, or shows nothing, is then its doing
alone. With all of them off the attack must succeed, or the test would show nothing.

What switches one off are settings of an institution's policy, or a function that is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from benchmarks.attack.training import institution_seed

from fedddpm import LocalPolicyOptions


@dataclass(frozen=True)
class Defence:
    """One defence. ``policy``: the settings that switch it off; ``replaced``: what is put in the place of functions."""

    name: str
    said: str  # in the words of its refusal; empty: it refuses nothing, and what is found is at chance
    policy: Mapping[str, object] = field(default_factory=dict)
    replaced: Mapping[str, Callable[..., object]] = field(default_factory=dict)  # by "module:name" or "module:A.name"

    def switch_off(self, patch: pytest.MonkeyPatch) -> Mapping[str, object]:
        """Switch it off until ``patch`` is undone; the settings of a policy that belong to it."""
        for place, value in self.replaced.items():
            module, _, name = place.partition(":")
            patch.setattr(f"{module}.{name}", value)
        return self.policy


def _public_seed(state: object) -> int:
    return institution_seed(state._member.decode(), secret=False)  # type: ignore[attr-defined]


SECRET_DRAWS = Defence("secret draws", "", replaced={"fedddpm.rounds.round_update:training_seed": _public_seed})
LEAST_WORK = Defence(
    "least work", "your policy wants 32 (min_images)", policy={"min_images": 1, "min_steps": 1, "min_images_seen": 1}
)
SEEDED_MODEL = Defence("first model from a seed", "allow_weights", policy={"allow_weights": True})
FIRST_GRADIENT = Defence("first gradient", "(max_small_gradients)", policy={"max_small_gradients": 1.0})
WEIGHT_CHECKS = Defence(  # replaced: of units without weights some figures are no numbers, which no slack lets pass
    "weight checks",
    "weights as somebody makes them to see images in updates",
    replaced={"fedddpm.rounds.round_update:require_honest_weights": lambda *_: None},
)
CHECKED_SUMS = Defence("checked sums", "the aggregator published a false sum", policy={"check_sums": 0.0})
CHARTER = Defence(
    "charter",
    "the charter of run",
    replaced={
        "fedddpm.rounds.trust:require_chartered": lambda *_: None,
        "fedddpm.rounds.run_history:require_follows": lambda *_: None,
    },
)
DEFENCES = (SECRET_DRAWS, LEAST_WORK, SEEDED_MODEL, FIRST_GRADIENT, WEIGHT_CHECKS, CHECKED_SUMS, CHARTER)
AT_ONCE = tuple(one for one in DEFENCES if one is not CHECKED_SUMS)  # against a trap that is the first model
AGAINST_PLANTED = tuple(one for one in DEFENCES if one is not SEEDED_MODEL)  # against one that a false sum plants


def all_but(on: Defence | None, patch: pytest.MonkeyPatch) -> LocalPolicyOptions:
    """Switch off every defence but one (None: every one); the policy that institutions then have, each field given."""
    policy = LocalPolicyOptions().model_dump()
    for defence in DEFENCES:
        if defence is not on:
            policy |= defence.switch_off(patch)
    return LocalPolicyOptions(**policy)
