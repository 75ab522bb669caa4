"""One round's aggregation in memory: the institutions' machines and the aggregator's rules, message by message.

These are the classes that run in hospitals and behind the aggregator's routes; only the network between them is left
out. ``masked=False`` adds the same ring words without masks, for cohorts that secure aggregation refuses: it is the
same encoding, the same sum and the same decoding, so the two give the same model to the last bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedddpm.contribution import Contribution, Vector, scaled_pieces
from fedddpm.local_update import LocalUpdate
from fedddpm_protocol import ring
from fedddpm_protocol.canonical import PROTOCOL
from fedddpm_protocol.chunks import chunk_count, chunk_span, segment_digest
from fedddpm_protocol.cohort import SurvivorSet, session_plan
from fedddpm_protocol.coordinator import MaskPlan, form_cohort, recover
from fedddpm_protocol.decoding import OpenedPart, check_opened, measure, next_model
from fedddpm_protocol.keys import SigningKey
from fedddpm_protocol.messages import ShareItem
from fedddpm_protocol.methods import Method, reporters_by_session
from fedddpm_protocol.participant import Participant
from fedddpm_protocol.policy import LocalPolicy, check_spec, open_result, sign_result, sign_spec
from fedddpm_protocol.roster import Member, Roster
from fedddpm_protocol.spec import PartResult, RoundResult, RoundSpec, ScaleReference, SegmentSpec, model_hash
from fedddpm_protocol.spent import SpentLog

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
        """Fresh keys and a roster of ``members``."""
        identities = {member: SigningKey.generate() for member in sorted(members, key=str.encode)}
        server = SigningKey.generate()
        enrolled = tuple(Member(member, key.public_key) for member, key in identities.items())
        roster = Roster(name, 1, c_max, n_min, server.public_key, enrolled)
        return cls(roster, server, identities, {member: SpentLog() for member in identities})


@dataclass(frozen=True, eq=False)
class Opened:
    """What a round opened."""

    model: Vector  # the next shared parts [coordinates of the base manifest]
    sums: dict[str, tuple[int, ...]]  # part -> opened sums of weights and losses, as SUM_FIELDS
    survivors: dict[str, tuple[str, ...]]  # part -> institutions in the sum
    references: dict[str, ScaleReference]  # part -> what the next round's scale follows from
    result_hash: bytes  # of the signed result; of the model where nothing is signed
    clipped: int  # institutions whose update was scaled down to the clip norm
    seconds: float


def aggregate(
    federation: Federation,
    spec: RoundSpec,
    updates: Mapping[str, LocalUpdate],
    base: Vector,
    rounding: str,
    *,
    masked: bool = True,
) -> Opened:
    """Sum everybody's update over ``base``, part by part, and derive the next model.

    ``rounding`` names the stream of stochastic rounding, so that a round done again gives the same bits.

    Raises:
        ProtocolError: the protocol's own rules refuse something, for instance a cohort that is too small.
    """
    began = time.monotonic()
    policy = LocalPolicy(architecture_hash=spec.architecture.hash, c_max=federation.roster.c_max)
    if masked:
        document = sign_spec(spec, federation.server)
        for _ in updates:
            check_spec(document, federation.roster, policy)
    pieces = {member: scaled_pieces(spec, update.delta) for member, update in updates.items()}
    opened, norms, results = {}, {}, []
    for name, reporters in reporters_by_session(Method(spec.method), spec.hash, federation.roster.ids).items():
        contributions = {
            member: Contribution(spec, name, updates[member], pieces[member], _rounding(rounding, member, name))
            for member in reporters
        }
        session = Session(federation, spec, name, policy, contributions)
        words, result = session.run() if masked else (session.run_plain(), None)
        opened[name] = _opened_part(spec, name, words, reporters)
        norms[name] = _norm(spec, name, opened[name])
        if result is not None:
            results.append(replace(result, norm=norms[name]))
    model = next_model(spec, base, opened)
    hashed = model_hash(spec.base_manifest, model)
    return Opened(
        model,
        {name: tuple(part.sums) for name, part in opened.items()},
        reporters_by_session(Method(spec.method), spec.hash, federation.roster.ids),
        {name: ScaleReference.after(norms[name], len(one.survivors), one.sums[0]) for name, one in opened.items()},
        _publish(federation, spec, tuple(results), hashed) if masked else hashed,
        sum(one.factor < 1 for one in pieces.values()),
        time.monotonic() - began,
    )


def _opened_part(spec: RoundSpec, name: str, words: Mapping[str, ring.Words], reporters: tuple[str, ...]) -> OpenedPart:
    values = spec.part(name).values

    def chunk(index: int) -> ring.Words:
        start, count = chunk_span(values, spec.chunk_coordinates, index)
        return words[name][start : start + count]

    return OpenedPart(chunk, _sums(spec, name, words), reporters, reporters)


def _norm(spec: RoundSpec, name: str, opened: OpenedPart) -> float:
    part = spec.part(name)
    count = len(opened.survivors)
    return check_opened(spec, part, measure(spec, part, opened), opened.sums, len(opened.cohort), count)


def _publish(federation: Federation, spec: RoundSpec, parts: tuple[PartResult, ...], hashed: bytes) -> bytes:
    """Sign the result as the aggregator and read it as an institution; its hash."""
    result = RoundResult(
        protocol=PROTOCOL,
        federation=spec.federation,
        run=spec.run,
        round=spec.round,
        attempt=spec.attempt,
        spec_hash=spec.hash,
        base_model_hash=spec.base_model_hash,
        parts=parts,
        model_hash=hashed,
        previous_result=spec.previous_result,
    )
    return open_result(sign_result(result, federation.server), federation.roster).hash


def _sums(spec: RoundSpec, part: str, words: Mapping[str, ring.Words]) -> tuple[int, ...]:
    return tuple(int(total) for total in words[spec.part(part).weights.name])


def _rounding(stream: str, member: str, part: str) -> bytes:
    return hashlib.sha256(f"{stream}/{member}/{part}".encode()).digest()


class Session:
    """One secure sum over everybody who reports the part."""

    def __init__(
        self,
        federation: Federation,
        spec: RoundSpec,
        part: str,
        policy: LocalPolicy,
        contributions: Mapping[str, Contribution],
    ) -> None:
        self._federation, self._spec, self._part = federation, spec, spec.part(part)
        self._policy, self._contributions = policy, contributions

    def run(self) -> tuple[dict[str, ring.Words], PartResult]:
        """Opened words by segment, and the part's result."""
        plan, roster = session_plan(self._spec, self._federation.roster, self._part.name), self._federation.roster
        machines = {member: self._machine(member) for member in self._contributions}
        cohort = form_cohort(plan, roster, [machine.join(1) for machine in machines.values()])
        inboxes: dict[str, list[ShareItem]] = {member: [] for member in cohort.ids}
        for member in cohort.ids:
            shares = machines[member].receive_cohort(cohort.joins)
            cohort.verify_shares(member, shares)
            for item in shares.items:
                inboxes[item.recipient].append(item)
        sharing = cohort.sharing(cohort.ids)
        uploads, digests = {}, {}
        for member in sharing.ids:
            machines[member].receive_shares(inboxes[member])
            self._contributions[member].take_place(member, cohort.ids)
            uploads[member] = self._mask(machines[member], self._contributions[member])
            manifest = machines[member].finish_upload(self._contributions[member].disclosed_samples)
            digests[member] = sharing.verify_manifest(member, manifest)
        survivors = sharing.survivors(digests)
        masks = self._unmask(survivors, machines)
        words, digest = self._open(masks, uploads)
        return words, PartResult(
            part=self._part.name,
            opened=True,
            session_id=cohort.session_id,
            hu3=survivors.hu3,
            cohort=cohort.ids,
            survivors=survivors.ids,
            sums=_sums(self._spec, self._part.name, words),
            opened_digest=digest,
            norm=0.0,  # follows from all parts of the opened sum, see aggregate
        )

    def run_plain(self) -> dict[str, ring.Words]:
        """The same words, packed and summed without masks: whoever sums sees every update."""
        opened = {}
        for member, contribution in self._contributions.items():
            contribution.take_place(member, tuple(self._contributions))
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
            plan=session_plan(self._spec, federation.roster, self._part.name),
            policy=self._policy,
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
            pieces = [
                masks.open_chunk(segment, index, (uploads[member][segment.name][index] for member in sorted(uploads)))
                for index in self._indices(segment)
            ]
            opened[segment.name] = np.concatenate(pieces)
            if segment == self._part.values:
                packed = [hashlib.sha256(ring.pack(piece, segment.bits)).digest() for piece in pieces]
                digest = segment_digest(segment, self._spec.chunk_coordinates, packed)
        return opened, digest
