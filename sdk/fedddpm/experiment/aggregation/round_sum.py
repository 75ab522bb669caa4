"""The sum of one round with everything that follows from a ring that was too narrow for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedddpm.experiment.aggregation.memory_round import Opened, aggregate
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.experiment.aggregation.specification import SpecMaker
from fedddpm.experiment.design.traffic_plan import plan_bytes
from fedddpm.experiment.results import RoundRecord
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.transport.traffic import FLOAT_BYTES
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import draw, sessions_of
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.errors import WrappedSumError
from fedddpm_protocol.primitives.ring import packed_bytes


@dataclass(frozen=True, eq=False)
class Summed:
    """A round's sum, and what all attempts at it moved."""

    spec: RoundSpec  # of the attempt that was opened
    opened: Opened
    wrapped: int  # sums that were not used
    payload_up: int  # bytes of all institutions together
    payload_down: int


def sum_round(
    federation: Federation,
    specs: SpecMaker,
    before: Sequence[RoundRecord],
    base_model: UNet,
    updates: Mapping[str, LocalUpdate],
    averaged: Vector | None = None,
) -> Summed:
    """Sum everybody's update over ``base_model``; where no part had room in its ring, at once again in the widest.

    ``averaged`` [coordinates of the shared parts]: with outer momentum, the averaged model of the round before.

    With one sum a round the second is over the same institutions, as SPENT asks. USPLIT draws others for a part, whom
    SPENT would keep out until a draw fits; in memory, where nobody's update is at risk, that is not waited for.

    Raises:
        ProtocolError: the protocol's own rules refuse something.
    """
    method, secure = Method(specs.plan.method), specs.plan.aggregation == "secure"
    base = flatten(base_model, method.shared_parts)
    stream = f"{specs.plan.name}/{len(before)}"
    attempts = [specs.round_spec(before, base_model)]
    try:
        opened = aggregate(federation, attempts[0], updates, base, stream, averaged, masked=secure)
    except WrappedSumError:
        attempts.append(specs.round_spec(before, base_model, 1, attempts[0].summed))
        if method is Method.USPLIT:
            federation.forget_spent()
        opened = aggregate(federation, attempts[1], updates, base, stream, averaged, masked=secure)
    return _summed(attempts, opened, federation.roster)


def _summed_parts(spec: RoundSpec) -> list[PartSpec]:
    return [spec.part(name) for name in spec.summed]


def _summed(attempts: Sequence[RoundSpec], opened: Opened, roster: Roster) -> Summed:
    """The last of ``attempts`` opened; of the others, no sum was used."""
    last, method = attempts[-1], Method(attempts[-1].method)
    up = (
        plan.up
        for spec in attempts
        for shard in draw(roster)
        for plan in plan_bytes(method, _summed_parts(spec), spec.hash, shard).values()
    )
    values = (last.part(session).values for session in opened.survivors)
    down = sum(packed_bytes(one.coordinates, one.bits) for one in values)
    if roster.sharding:  # whoever wants the next model takes the cheaper way
        down = min(down, FLOAT_BYTES * sum(part.parameters for part in last.parts))
    unused = len(sessions_of(method, roster, last.turn)) * (len(attempts) - 1) + len(opened.wrapped)
    return Summed(last, opened, unused, sum(up), down * len(roster.ids))
