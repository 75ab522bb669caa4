"""What an institution checks on its own before it takes part, whatever the aggregator says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm_protocol.agreement.model_layout import Manifest
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import PolicyError

_SMALLEST_COHORT = 3  # below it, the sum shows one member the other's update


def require_more_than_two(roster: Roster) -> None:
    """PolicyError where the federation lets two parties sum: nobody is part of that without having said so."""
    if roster.n_min < _SMALLEST_COHORT:
        raise PolicyError(
            "this federation sums two parties only, which hides your update from the server, not from the other "
            "party; set allow_two_party to take part all the same"
        )


@dataclass(frozen=True)
class LocalPolicy:
    """Limits of one institution; a round outside them is refused before training."""

    architecture_hash: bytes
    manifests: Mapping[str, Manifest]  # of each part, in the network's own order
    min_cohort: int = _SMALLEST_COHORT  # smallest set of institutions whose sum may be opened
    c_max: int = 0  # the roster must allow for at least so many conspirators
    max_epochs: int | None = None
    max_steps: int | None = None
    max_learning_rate: float | None = None
    max_clip_norm: float | None = None
    max_outer_momentum: float | None = None  # with it a model moves 1 / (1 - momentum) times as far, at most
    min_bits: int = 8  # of a ring; coarse rounding shows more of what sets one update apart
    allow_two_party: bool = False
    discloses_samples: bool = True  # whether a round may ask for the number of samples in clear
    allow_weights: bool = False  # whether the first model may be weights that somebody made, instead of a seed

    def floor(self, roster: Roster) -> int:
        """Smallest set of sharers or survivors this institution accepts."""
        if roster.n_min == 2 and self.allow_two_party and self.min_cohort <= _SMALLEST_COHORT:
            return 2  # the opt-in lowers the default, never a larger cohort that the institution asked for
        return max(self.min_cohort, roster.n_min)

    def check(self, spec: RoundSpec, roster: Roster) -> None:
        """PolicyError unless an opened specification, and the roster that it was made for, are within the limits."""
        self.check_roster(roster)
        self.check_spec(spec)

    def check_roster(self, roster: Roster) -> None:
        """PolicyError if the federation's own rules are weaker than this institution wants."""
        if not self.allow_two_party:
            require_more_than_two(roster)
        if roster.c_max < self.c_max:
            raise PolicyError(
                f"the roster allows for {roster.c_max} conspirators, your policy wants at least {self.c_max}; "
                "ask the federation's root for a stricter roster or lower your c_max"
            )
        if len(roster.members) < self.floor(roster):
            raise PolicyError(
                f"the roster has {len(roster.members)} members, your smallest cohort is {self.floor(roster)}"
                f" (your min_cohort is {self.min_cohort}, the roster's n_min {roster.n_min})"
            )

    def check_spec(self, spec: RoundSpec) -> None:
        """PolicyError for the first field of ``spec`` outside the limits, with both values."""
        limits = (
            ("epochs", "max_epochs", spec.epochs, self.max_epochs),
            ("local steps", "max_steps", spec.max_steps or None, self.max_steps),
            ("the learning rate", "max_learning_rate", spec.learning_rate, self.max_learning_rate),
            ("the clip norm", "max_clip_norm", spec.clip_norm, self.max_clip_norm),
            ("the outer momentum", "max_outer_momentum", spec.outer.momentum, self.max_outer_momentum),
        )
        for what, setting, wanted, limit in limits:
            if limit is not None and wanted is not None and wanted > limit:
                raise PolicyError(f"the round wants {wanted} as {what}, your policy allows {limit} ({setting})")
        if spec.architecture.hash != self.architecture_hash:
            raise PolicyError(
                f"the round trains {spec.architecture}, which is not the network you configured; "
                "compare preset, image size and channels with the coordinator's"
            )
        if not spec.initial_seed and not self.allow_weights:
            raise PolicyError(
                "the run begins with weights that somebody made, without a seed that they follow from: they can be made"
                " so that updates show images; ask the coordinator for a first model of fedddpm init-model, or set"
                " allow_weights if you know where these come from"
            )
        if spec.weighting == "disclosed" and not self.discloses_samples:
            raise PolicyError(
                "the round asks for the number of samples in clear (weighting 'disclosed'),"
                " your policy does not give it (disclose_samples)"
            )
        for part in spec.parts:
            if part.values.bits < self.min_bits:
                raise PolicyError(
                    f"part {part.name!r} wants a ring of {part.values.bits} bits, at least {self.min_bits}"
                )
            if self.manifests.get(part.name) != part.manifest:
                raise PolicyError(
                    f"the tensors of part {part.name!r} are not those of your network, in its order; a renamed or "
                    "permuted model is refused because it would pass for a fresh one"
                )
