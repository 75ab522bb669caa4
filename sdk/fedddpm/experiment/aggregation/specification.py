"""What a round of a study agrees on: a function of the settings and of the rounds before, so that any start agrees.

Rings and scales follow by the same rule as behind the aggregator's routes (see ``rings``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedddpm.experiment.design.plan import RunPlan
from fedddpm.experiment.design.settings import StudySettings
from fedddpm.experiment.results import RoundRecord
from fedddpm.model.initialization import seed_of
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.methods import TURNS, Method, stretch, turn_of
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.rings import next_ring
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import largest_cohort
from fedddpm_protocol.agreement.spec import (
    NOTHING_KNOWN,
    ONE_MODEL,
    PartSpec,
    RoundSpec,
    ScaleReference,
    part_spec,
)
from fedddpm_protocol.agreement.terms import PLAIN_MEAN, OuterOptimizer
from fedddpm_protocol.primitives.canonical import PROTOCOL, tagged_hash, u64

_CHUNK = 2**18  # coordinates
_CLOCKLESS_S = 1.0  # phases end here when everybody is through


@dataclass(frozen=True)
class SpecMaker:
    """Makes the specifications of one run."""

    settings: StudySettings
    plan: RunPlan
    roster: Roster
    initial_model_hash: bytes
    weight_cap: int  # samples that count as a full weight

    def round_spec(
        self, before: Sequence[RoundRecord], base_model: UNet, attempt: int = 0, wrapped: Collection[str] = ()
    ) -> RoundSpec:
        """The round after those of ``before``; ``wrapped``: parts whose sum in its last attempt was too large."""
        s, method, index = self.settings, Method(self.plan.method), len(before)
        shared = manifest(base_model, method.shared_parts)
        return RoundSpec(
            protocol=PROTOCOL,
            federation=self.roster.federation,
            run=self.plan.name,
            method=method.value,
            round=index,
            rounds=s.rounds,
            attempt=attempt,
            roster_version=self.roster.version,
            roster_hash=self.roster.hash,
            architecture=base_model.architecture,
            initial_model_hash=self.initial_model_hash,
            initial_seed=seed_of(self.plan.seed),
            base_model_hash=model_hash(shared, flatten(base_model, method.shared_parts)),
            parts=tuple(self._part(name, before, base_model, wrapped) for name in method.sessions),
            weighting=self._weighting(method),
            clip_norm=s.clip_norm,
            weight_cap=self.weight_cap,
            largest_cohort=largest_cohort(self.roster),
            chunk_coordinates=_CHUNK,
            encoding_seed=tagged_hash("study", self.plan.name.encode(), u64(index), u64(attempt)),
            epochs=s.epochs,
            max_steps=s.max_steps,
            batch_size=s.batch_size,
            learning_rate=s.rate_for(self.plan.network),
            recipe=s.recipe_for(self.plan.network),
            join_s=_CLOCKLESS_S,
            shares_s=_CLOCKLESS_S,
            masked_s=_CLOCKLESS_S,
            confirm_s=_CLOCKLESS_S,
            unmask_s=_CLOCKLESS_S,
            previous_result=bytes.fromhex(before[-1].result_hash) if before else b"",
            turn=self.turn(index),
            outer=self._outer(method),
        ).with_terms_hash()

    def turn(self, index: int) -> str:
        """The part that is summed in a round, where they take turns; empty where all are."""
        return turn_of(self._turns, index)

    @property
    def _turns(self) -> tuple[str, ...]:
        return TURNS if self.plan.method == Method.TURN else ()

    def _outer(self, method: Method) -> OuterOptimizer:
        """That of the settings, where the method ends with one model."""
        s = self.settings
        return OuterOptimizer(s.outer_learning_rate, s.outer_momentum) if method in ONE_MODEL else PLAIN_MEAN

    def _weighting(self, method: Method) -> str:
        if self.settings.weighting == "equal":
            return "equal"
        return "disclosed" if method is Method.USPLIT else "hidden"

    def _part(self, name: str, before: Sequence[RoundRecord], base_model: UNet, wrapped: Collection[str]) -> PartSpec:
        tensors = manifest(base_model, Method(self.plan.method).sessions[name])
        summed = [one for one in before if self.turn(one.round) in ("", name)]  # rounds with a sum of this part
        too_large = name in wrapped or bool(summed and name not in summed[-1].sums)
        ring = next_ring(
            self.plan.bits, self.settings.first_bits, self._reference(name, summed, len(before)), widest=too_large
        )
        return part_spec(name, tensors, ring.bits, ring.reference)

    def _reference(self, part: str, before: Sequence[RoundRecord], index: int) -> ScaleReference:
        """What the scale of a part follows from in a round: its last opened sum."""
        last = before[-1].sums.get(part) if before else None
        if last is None:
            return NOTHING_KNOWN
        return ScaleReference.after(last.norm * stretch(self._turns, part, index), last.survivors, last.weight)
