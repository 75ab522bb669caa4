"""One part's secure sum in memory: the institutions' machines and the aggregator's rules, message by message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedddpm.updates.contribution import Contribution
from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.roster import Member, Roster, Sharding
from fedddpm_protocol.agreement.spec import RoundSpec, SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import SurvivorSet, session_plan
from fedddpm_protocol.session.coordinator import MaskPlan, form_cohort, recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import MAX_COHORT, Deal, ShareItem

Chunks = dict[str, list[bytes]]  # segment name -> packed chunks


@dataclass(repr=False)
class Federation:
    """A roster made for one run, with the keys of everybody in it; they guard nothing outside this process."""

    roster: Roster
    server: SigningKey
    identities: Mapping[str, SigningKey]
    spent: dict[str, SpentLog] = field(default_factory=dict)

    @classmethod
    def found(cls, name: str, members: Iterable[str], c_max: int, n_min: int) -> Federation:
        """Fresh keys and a roster of ``members``, in shards where one sum does not hold them all.

        ``c_max`` institutions of all may conspire. The draw of shards follows from names: a run done again has the
        same, and nobody in this process could choose better.
        """
        identities = {member: SigningKey.generate() for member in sorted(members, key=str.encode)}
        server = SigningKey.generate()
        enrolled = tuple(Member(member, key.public_key) for member, key in identities.items())
        sharding: tuple[Sharding, ...] = ()
        if len(enrolled) > MAX_COHORT:
            seed = tagged_hash("study", name.encode(), *(member.encode() for member in identities))
            sharding = (Sharding(MAX_COHORT, c_max, seed, "the names of the study's institutions"),)
            c_max = sharding[0].needed_c_max(len(enrolled))
        n_min = max(n_min, c_max + 2) if c_max else n_min
        roster = Roster(name, 1, c_max, n_min, server.public_key, enrolled, sharding=sharding)
        return cls(roster, server, identities, {member: SpentLog() for member in identities})

    def forget_spent(self) -> None:
        """Let everybody answer for any base model and part again."""
        self.spent.update({member: SpentLog() for member in self.identities})


def opened_sums(spec: RoundSpec, part: str, words: Mapping[str, ring.Words]) -> tuple[int, ...]:
    """The opened weights segment of a part, as SUM_FIELDS."""
    return tuple(int(total) for total in words[spec.part(part).weights.name])


class Session:
    """One secure sum over everybody who reports a part, or over those of a shard; ``session`` is its name."""

    def __init__(
        self,
        federation: Federation,
        spec: RoundSpec,
        session: str,
        contributions: Mapping[str, Contribution],
    ) -> None:
        self._federation, self._spec, self._part = federation, spec, spec.part(session)
        self._name, self._plan = session, session_plan(spec, federation.roster, session)
        self._contributions = contributions

    def run(self) -> tuple[dict[str, ring.Words], PartResult]:
        """Opened words by segment, and the part's result."""
        plan, roster = self._plan, self._federation.roster
        machines = {member: self._machine(member) for member in self._contributions}
        cohort = form_cohort(plan, roster, [machine.join(1) for machine in machines.values()])
        inboxes: dict[str, list[ShareItem]] = {member: [] for member in cohort.ids}
        deals: list[Deal] = []
        for member in cohort.ids:
            shares = machines[member].receive_cohort(cohort.joins)
            cohort.verify_shares(member, shares)
            deals.append(shares.deal)
            for item in shares.items:
                inboxes[item.recipient].append(item)
        sharing = cohort.sharing(deals)
        uploads, digests = {}, {}
        for member in sharing.ids:
            machines[member].receive_shares(inboxes[member], deals)
            self._contributions[member].take_place(member, cohort.ids, roster.c_max)
            uploads[member] = self._mask(machines[member], self._contributions[member])
            manifest = machines[member].finish_upload(self._contributions[member].disclosed_samples)
            digests[member] = sharing.verify_manifest(member, manifest)
        survivors = sharing.survivors(digests)
        masks = self._unmask(survivors, machines)
        words, digest = self._open(masks, uploads)
        return words, PartResult(
            part=self._name,
            opened=True,
            session_id=cohort.session_id,
            hu3=survivors.hu3,
            cohort=cohort.ids,
            survivors=survivors.ids,
            sums=opened_sums(self._spec, self._part.name, words),
            opened_digest=digest,
            norm=0.0,  # follows from all parts of the opened sum, see aggregate
        )

    def run_plain(self) -> dict[str, ring.Words]:
        """The same words, packed and summed without masks: whoever sums sees every update."""
        opened = {}
        for member, contribution in self._contributions.items():
            contribution.take_place(member, tuple(self._contributions), self._federation.roster.c_max)
        for segment in self._part.segments:
            total = ring.zeros(segment.coordinates, segment.bits)
            for index in self._indices(segment):
                start, count = chunk_span(segment, self._spec.chunk_coordinates, index)
                for contribution in self._contributions.values():
                    packed = ring.pack(contribution.words(segment, index), segment.bits)
                    ring.add_in_place(
                        total[start : start + count], ring.unpack(packed, segment.bits, count), segment.bits
                    )
            opened[segment.name] = total
        return opened

    def _machine(self, member: str) -> Participant:
        federation, base = self._federation, self._spec.base_model_hash
        return Participant(
            identity=federation.identities[member],
            member_id=member,
            roster=federation.roster,
            plan=self._plan,
            floor=federation.roster.n_min,
            recorded_u3=federation.spent[member].recorded(base, self._part.name),
            release=federation.spent[member].release(federation.roster, base, self._part.name),
        )

    def _indices(self, segment: SegmentSpec) -> range:
        return range(chunk_count(segment, self._spec.chunk_coordinates))

    def _mask(self, machine: Participant, contribution: Contribution) -> Chunks:
        return {
            segment.name: [
                machine.mask_chunk(segment.name, index, contribution.words(segment, index))
                for index in self._indices(segment)
            ]
            for segment in self._part.segments
        }

    def _unmask(self, survivors: SurvivorSet, machines: Mapping[str, Participant]) -> MaskPlan:
        confirmations = []
        for member in survivors.ids:
            confirmation = machines[member].receive_survivors(survivors.message.survivors)
            survivors.verify_confirmation(confirmation)
            confirmations.append(confirmation)
        answers = [
            machines[member].receive_confirmations(confirmations, self._federation.spent[member].commit)
            for member in survivors.ids
        ]
        return recover(survivors, answers)

    def _open(self, masks: MaskPlan, uploads: Mapping[str, Chunks]) -> tuple[dict[str, ring.Words], bytes]:
        """Opened words by segment, and the digest of the opened values."""
        opened, digest = {}, b""
        for segment in self._part.segments:
            opener = masks.opener(segment)
            pieces = [
                opener.open(index, (uploads[member][segment.name][index] for member in sorted(uploads)))
                for index in self._indices(segment)
            ]
            opened[segment.name] = np.concatenate(pieces)
            if segment == self._part.values:
                packed = [hashlib.sha256(ring.pack(piece, segment.bits)).digest() for piece in pieces]
                digest = segment_digest(segment, self._spec.chunk_coordinates, packed)
        return opened, digest
