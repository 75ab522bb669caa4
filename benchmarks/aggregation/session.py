"""A cohort of real machines, brought up to the point where the vectors count.

All keys come from names, so that the same session can be held more than once: by the process that stands for the
institutions, by the one that stands for the aggregator, and over a short vector, for the answers that open the sum.
They have the same masks, and nobody needs all uploads at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from benchmarks.aggregation.cost import Job, Stopwatch
from benchmarks.aggregation.sum_spec import sum_spec

from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.roster import Member, Roster
from fedddpm_protocol.agreement.spec import WEIGHT_UNITS, PartSpec, RoundSpec, ScaleReference, SegmentSpec, part_spec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import Cohort, SessionPlan, SurvivorSet, session_plan
from fedddpm_protocol.session.coordinator import MaskPlan, form_cohort, recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Deal, Join, ShareItem, Unmask

Vector = npt.NDArray[np.float32]
PART = "full"
_SHORT = part_spec(PART, (TensorSpec("w", (8,)),)).segments


class _Stream:
    """Bytes that only its name decides."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def __call__(self, size: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._name}/{self._count}".encode()).digest(size)


@dataclass
class Machines:
    """Participants that have sent their shares, and what is on its way to each."""

    cohort: Cohort
    participants: dict[str, Participant]
    items: dict[str, list[ShareItem]]
    deals: list[Deal]


class Session:
    """One secure sum of ``cohort`` institutions over ``coordinates`` parameters in a ring of ``bits`` bits.

    Every institution gives the same update, so that the mean is known and their sum is as large as it can be.
    """

    def __init__(self, job: Job) -> None:
        self.members = [f"site-{index:03d}" for index in range(job.cohort)]
        self._identities = {member: SigningKey(_Stream(f"{member}/identity")(32)) for member in self.members}
        enrolled = tuple(Member(member, key.public_key) for member, key in self._identities.items())
        self._roster = Roster("benchmark", 1, 0, 3, SigningKey(bytes(32)).public_key, enrolled)
        self.delta = np.random.default_rng(0).standard_normal(job.coordinates, np.float32)
        self.delta *= np.float32(1e-2)
        self.spec = _spec(self._roster, self.delta, job)
        self.plan = session_plan(self.spec, self._roster, PART)

    @property
    def part(self) -> PartSpec:
        """The part that is summed."""
        return self.spec.part(PART)

    def machines(self, plan: SessionPlan, watch: Stopwatch) -> Machines:
        """JOIN and SHARES of everybody; one client's and the server's seconds go to the watch."""
        participants = {member: self._participant(member, plan) for member in self.members}
        joins = [self._join(participant, watch) for participant in participants.values()]
        with watch.step("exchange, server"):
            cohort = form_cohort(plan, self._roster, joins)
        items: dict[str, list[ShareItem]] = {member: [] for member in self.members}
        deals: list[Deal] = []
        for member, participant in participants.items():
            with watch.step(_name(member, self.members)):
                shares = participant.receive_cohort(cohort.joins)
            with watch.step("exchange, server"):
                cohort.verify_shares(member, shares)
            deals.append(shares.deal)
            for item in shares.items:
                items[item.recipient].append(item)
        return Machines(cohort, participants, items, deals)

    def answers(self, survivors: Sequence[str]) -> tuple[SurvivorSet, list[Unmask]]:
        """CONFIRM and UNMASK of the same session over a short vector: the survivors and what they release."""
        machines = self.machines(replace(self.plan, segments=_SHORT), Stopwatch())
        sharing = machines.cohort.sharing(machines.deals)
        digests = {}
        for member in survivors:
            machine = machines.participants[member]
            machine.receive_shares(machines.items[member], machines.deals)
            for segment in _SHORT:
                machine.mask_chunk(segment.name, 0, ring.zeros(segment.coordinates, segment.bits))
            digests[member] = sharing.verify_manifest(member, machine.finish_upload())
        alive = sharing.survivors(digests)
        announced = alive.message.survivors
        confirmations = [machines.participants[member].receive_survivors(announced) for member in survivors]
        logs = {member: SpentLog() for member in survivors}
        return alive, [
            machines.participants[member].receive_confirmations(confirmations, logs[member].commit)
            for member in survivors
        ]

    def _join(self, participant: Participant, watch: Stopwatch) -> Join:
        with watch.step(_name(participant.member_id, self.members)):
            return participant.join(1)

    def _participant(self, member: str, plan: SessionPlan) -> Participant:
        return Participant(
            identity=self._identities[member],
            member_id=member,
            roster=self._roster,
            plan=plan,
            floor=self._roster.n_min,
            random_bytes=_Stream(member),
        )


def mask_plan(cohort: Cohort, short: SurvivorSet, answers: Sequence[Unmask]) -> MaskPlan:
    """The masks in the sum of ``short``'s survivors, for the vectors of ``cohort``'s plan."""
    sharing = cohort.sharing(short.sharing.deals)
    if sharing.hu2 != short.sharing.hu2:
        raise SystemExit("the session over a short vector has other keys than the measured one")
    digests = dict.fromkeys(short.ids, bytes(32))
    return MaskPlan(sharing.survivors(digests), recover(short, answers).seeds)


def words_of(segment: SegmentSpec, plan: SessionPlan, sums: ring.Words, index: int) -> ring.Words:
    """One chunk of the short segment beside the values, in memory of its own."""
    start, count = chunk_span(segment, plan.chunk_coordinates, index)
    return sums[start : start + count].copy()


def _name(member: str, members: Sequence[str]) -> str:
    return "exchange, client" if member == members[0] else "others"


def _spec(roster: Roster, delta: Vector, job: Job) -> RoundSpec:
    norm = float(np.sqrt(np.square(delta, dtype=np.float64).sum()))
    known = ScaleReference(norm, job.cohort, job.cohort * WEIGHT_UNITS)
    part = part_spec(PART, (TensorSpec("w", (len(delta),)),), job.bits, known, job.chunk)
    return sum_spec(
        Method.FULL,
        part,
        clip_norm=2 * norm,
        largest_cohort=job.cohort,
        chunk_coordinates=job.chunk,
        encoding_seed=b"\x03" * 32,
        roster=roster,
    )
