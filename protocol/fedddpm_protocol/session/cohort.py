"""The three sets of a session, as both sides see them: who joined (U1), who shared (U2), who uploaded (U3).

Each set is checked when it is built and cannot be changed afterwards; the next one can only be built from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedddpm_protocol.agreement.chunks import upload_digest
from fedddpm_protocol.agreement.methods import Method, part_of, reporters_by_session
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import members_of
from fedddpm_protocol.agreement.spec import RoundSpec, SegmentSpec
from fedddpm_protocol.errors import (
    CohortTooSmallError,
    ConflictError,
    DuplicateError,
    MalformedError,
    ShareError,
    SpecError,
    SurvivorsError,
    UnknownMemberError,
)
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.canonical import lp, tagged_hash, u64
from fedddpm_protocol.session.commitments import deal_hash, share_commitment
from fedddpm_protocol.wire.messages import (
    Commitments,
    Confirmation,
    Deal,
    DealBody,
    Join,
    JoinBody,
    RevealedShare,
    Shares,
    Survivor,
    Survivors,
    Unmask,
    UnmaskBody,
    UploadManifest,
)


@dataclass(frozen=True)
class SessionPlan:
    """What one secure sum needs to know of the round: the same for everybody, fixed before anybody joins."""

    spec_hash: bytes
    base_model_hash: bytes
    part: str
    segments: tuple[SegmentSpec, ...]
    chunk_coordinates: int
    largest_cohort: int
    discloses_samples: bool
    reporters: tuple[str, ...]  # who may join, sorted

    def segment(self, name: str) -> SegmentSpec:
        """The segment called ``name``; MalformedError if there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise MalformedError(f"part {self.part!r} has no segment {name!r}")


def session_plan(spec: RoundSpec, roster: Roster, session: str) -> SessionPlan:
    """The plan of one session; SpecError if the round has no such session."""
    method, part = Method(spec.method), part_of(session)
    members = members_of(method, roster, session, spec.draw, spec.turn)
    reporters = reporters_by_session(method, spec.hash, members)[part]
    return SessionPlan(
        spec_hash=spec.hash,
        base_model_hash=spec.base_model_hash,
        part=part,
        segments=spec.part(part).segments,
        chunk_coordinates=spec.chunk_coordinates,
        largest_cohort=spec.largest_cohort,
        discloses_samples=spec.weighting == "disclosed",
        reporters=reporters,
    )


def verify_join(plan: SessionPlan, roster: Roster, join: Join) -> JoinBody:
    """The content of a JOIN for the plan's part.

    Raises UnknownMemberError, SignatureError, SpecError (another spec) or MalformedError, also for session keys of low
    order: one such key would end the session of everybody who meets it.
    """
    body = join.parse()
    keys.verify(roster.public_key(body.id), "join", join.body, join.signature, body.id)
    if body.spec_hash != plan.spec_hash:
        raise SpecError("a JOIN names another round specification", body.id)
    if body.id not in plan.reporters:
        raise UnknownMemberError(f"{body.id!r} does not report part {plan.part!r} in this round", body.id)
    if body.recorded_u3 and body.id not in body.recorded_u3:
        raise MalformedError("a JOIN records survivors of a sum that its sender is not in", body.id)
    for public in (body.channel_public_key, body.mask_public_key):
        keys.require_session_key(public, body.id)
    return body


@dataclass(frozen=True)
class Cohort:
    """U1: the members whose JOINs are in, sorted by id."""

    plan: SessionPlan
    roster: Roster
    joins: tuple[Join, ...]
    bodies: tuple[JoinBody, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Member ids, sorted bytewise."""
        return tuple(body.id for body in self.bodies)

    @property
    def threshold(self) -> int:
        """t, from the size of the cohort and the roster's c_max."""
        return self.roster.threshold(len(self.bodies))

    @property
    def quorum(self) -> int:
        """``max(t, n_min)``."""
        return self.roster.quorum(len(self.bodies))

    @cached_property
    def session_id(self) -> bytes:
        """``sid = H("session", join bodies sorted by id)``."""
        return tagged_hash("session", *(join.body for join in self.joins))

    def body(self, member: str) -> JoinBody:
        """The JOIN of a member; UnknownMemberError if it is not in the cohort."""
        for body in self.bodies:
            if body.id == member:
                return body
        raise UnknownMemberError(f"{member!r} is not in the cohort of part {self.plan.part!r}", member)

    def point(self, member: str) -> int:
        """1-based Shamir point of a member."""
        return self.ids.index(self.body(member).id) + 1

    def verify_deal(self, deal: Deal) -> DealBody:
        """The content of a DEAL; raises unless a member of the cohort signed it for this session and all of it."""
        body = deal.parse()
        self.body(body.dealer)
        keys.verify(self.roster.public_key(body.dealer), "deal", deal.body, deal.signature, body.dealer)
        if body.session_id != self.session_id:
            raise ShareError("a deal is for another session", body.dealer)
        if tuple(line.recipient for line in body.lines) != self.ids:
            raise ShareError("a deal must have one line for every member of the cohort", body.dealer)
        return body

    def verify_shares(self, sender: str, shares: Shares) -> None:
        """Raise unless ``shares`` are a deal of ``sender`` and the items that it names, one to every other member."""
        body = self.verify_deal(shares.deal)
        if body.dealer != sender:
            raise ShareError(f"a deal by {body.dealer!r} stands in the place of that of {sender!r}", sender)
        recipients = [item.recipient for item in shares.items]
        if sorted(recipients) != sorted(member for member in self.ids if member != sender):
            raise ShareError("shares must go once to every other member of the cohort", sender)
        named = {line.recipient: line.sealed for line in body.lines}
        for item in shares.items:
            if item.sender != sender:
                raise ShareError(f"a share by {item.sender!r} stands among those of {sender!r}", sender)
            if hashlib.sha256(item.sealed).digest() != named[item.recipient]:
                raise ShareError(f"the share for {item.recipient!r} is not the one that the deal names", sender)

    def sharing(self, deals: Iterable[Deal]) -> Sharing:
        """U2 from its deals; CohortTooSmallError below ``max(t, n_min)``, or what :meth:`verify_deal` raises."""
        by_dealer: dict[str, tuple[Deal, DealBody]] = {}
        for deal in deals:
            body = self.verify_deal(deal)
            if body.dealer in by_dealer:
                raise DuplicateError(f"two deals come from {body.dealer!r}", body.dealer)
            by_dealer[body.dealer] = (deal, body)
        ids = tuple(sorted(by_dealer, key=str.encode))
        if len(ids) < self.quorum:
            raise CohortTooSmallError(f"{len(ids)} members shared their keys, {self.quorum} are needed")
        return Sharing(self, ids, tuple(by_dealer[i][0] for i in ids), tuple(by_dealer[i][1] for i in ids))


def open_cohort(plan: SessionPlan, roster: Roster, joins: Sequence[Join]) -> Cohort:
    """U1 from its JOINs, all rules checked.

    Raises DuplicateError (an id or an ephemeral key twice), CohortTooSmallError, MalformedError (too many), and what
    :func:`verify_join` raises.
    """
    by_id: dict[str, tuple[Join, JoinBody]] = {}
    for join in joins:
        body = verify_join(plan, roster, join)
        if body.id in by_id:
            raise DuplicateError(f"{body.id!r} joined twice", body.id)
        by_id[body.id] = (join, body)
    ordered = [by_id[member] for member in sorted(by_id, key=str.encode)]
    cohort = Cohort(plan, roster, tuple(j for j, _ in ordered), tuple(b for _, b in ordered))
    ephemeral = [key for body in cohort.bodies for key in (body.channel_public_key, body.mask_public_key)]
    if len(set(ephemeral)) != len(ephemeral):
        raise DuplicateError("two session keys in the cohort are the same")
    if len(ordered) < max(cohort.quorum, 2):
        raise CohortTooSmallError(f"{len(ordered)} members joined part {plan.part!r}, {cohort.quorum} are needed")
    if len(ordered) > plan.largest_cohort:
        raise MalformedError(f"{len(ordered)} members joined, the encoding has room for {plan.largest_cohort}")
    return cohort


def hash_of_u2(session_id: bytes, deal_hashes: Iterable[tuple[str, bytes]]) -> bytes:
    """``hU2 = H("u2", sid, then id, H("deal", body) for each)``, in order."""
    pairs = (field for member, digest in deal_hashes for field in (member.encode(), digest))
    return tagged_hash("u2", session_id, *pairs)


def hash_of_u3(session_id: bytes, hu2: bytes, digests: Iterable[tuple[str, bytes]]) -> bytes:
    """``hU3 = H("u3", sid, hU2, then id, upload digest for each)``, in order."""
    pairs = (field for member, digest in digests for field in (member.encode(), digest))
    return tagged_hash("u3", session_id, hu2, *pairs)


@dataclass(frozen=True)
class Sharing:
    """U2: the members whose shares arrived, with what they committed to. ``hu2`` goes into every mask."""

    cohort: Cohort
    ids: tuple[str, ...]
    deals: tuple[Deal, ...]
    bodies: tuple[DealBody, ...]

    @cached_property
    def deal_hashes(self) -> tuple[tuple[str, bytes], ...]:
        """Each member, and the hash of its deal."""
        return tuple(zip(self.ids, map(deal_hash, self.deals), strict=True))

    @cached_property
    def hu2(self) -> bytes:
        """Different views of U2, or of what one of it committed to, give masks that do not cancel."""
        return hash_of_u2(self.cohort.session_id, self.deal_hashes)

    @cached_property
    def _lines(self) -> Mapping[tuple[str, str], Commitments]:
        return {(body.dealer, line.recipient): line for body in self.bodies for line in body.lines}

    def deal(self, dealer: str) -> Deal:
        """The deal of a member; UnknownMemberError if it is not of U2."""
        if dealer not in self.ids:
            raise UnknownMemberError(f"{dealer!r} did not share its keys in this session", dealer)
        return self.deals[self.ids.index(dealer)]

    def commitments(self, dealer: str, recipient: str) -> Commitments:
        """What ``dealer`` committed to for ``recipient``; UnknownMemberError for outsiders."""
        line = self._lines.get((dealer, recipient))
        if line is None:
            raise UnknownMemberError(f"no share from {dealer!r} to {recipient!r} is in this session", dealer)
        return line

    def is_as_dealt(self, dealer: str, holder: str, revealed: RevealedShare) -> bool:
        """Whether a revealed share is the one that ``dealer`` committed to for ``holder``."""
        commitment = self.commitments(dealer, holder).of(revealed.kind)
        opened = (revealed.kind, revealed.nonce, revealed.share)
        return share_commitment(self.cohort.session_id, dealer, holder, *opened) == commitment

    def verify_manifest(self, member: str, manifest: UploadManifest) -> bytes:
        """The upload digest of a member; checks the disclosed sample count where the spec wants one."""
        if member not in self.ids:
            raise UnknownMemberError(f"{member!r} did not share its keys in this session", member)
        plan = self.cohort.plan
        if plan.discloses_samples:
            if manifest.samples is None or manifest.samples_signature is None:
                raise MalformedError("this round wants disclosed sample counts", member)
            signed = samples_message(self.cohort.session_id, member, manifest.samples)
            public_key = self.cohort.roster.public_key(member)
            keys.verify(public_key, "samples", signed, manifest.samples_signature, member)
        elif manifest.samples is not None or manifest.samples_signature is not None:
            raise MalformedError("this round keeps sample counts hidden; none may be sent", member)
        return upload_digest(member, plan.segments, plan.chunk_coordinates, manifest.chunks)

    def survivors(self, digests: Mapping[str, bytes]) -> SurvivorSet:
        """U3 from upload digests; SurvivorsError if not within U2, CohortTooSmallError below ``max(t, n_min)``."""
        ids = tuple(sorted(digests, key=str.encode))
        strangers = set(ids) - set(self.ids)
        if strangers:
            raise SurvivorsError(f"survivors {sorted(strangers)} did not share their keys", "aggregator")
        if len(ids) < self.cohort.quorum:
            raise CohortTooSmallError(f"{len(ids)} updates arrived, {self.cohort.quorum} are needed")
        return SurvivorSet(self, ids, tuple(digests[member] for member in ids))


def samples_message(session_id: bytes, member: str, samples: int) -> bytes:
    """What a disclosed sample count signs: ``LP(sid, id, u64(count))``."""
    return lp(session_id, member.encode(), u64(samples))


@dataclass(frozen=True)
class SurvivorSet:
    """U3: the members whose update is in the sum, with their upload digests."""

    sharing: Sharing
    ids: tuple[str, ...]
    digests: tuple[bytes, ...]

    @cached_property
    def hu3(self) -> bytes:
        """What the survivors sign, see :func:`hash_of_u3`."""
        digests = zip(self.ids, self.digests, strict=True)
        return hash_of_u3(self.sharing.cohort.session_id, self.sharing.hu2, digests)

    @property
    def dropped(self) -> tuple[str, ...]:
        """U2 without U3."""
        return tuple(member for member in self.sharing.ids if member not in self.ids)

    @property
    def message(self) -> Survivors:
        """What the aggregator announces."""
        pairs = zip(self.ids, self.digests, strict=True)
        return Survivors(survivors=tuple(Survivor(id=member, upload_digest=digest) for member, digest in pairs))

    def verify_confirmation(self, confirmation: Confirmation) -> None:
        """Raise unless a member of U3 signed this hU3."""
        if confirmation.id not in self.ids:
            raise SurvivorsError("a confirmation comes from outside the survivors", confirmation.id)
        public_key = self.sharing.cohort.roster.public_key(confirmation.id)
        keys.verify(public_key, "confirm", self.hu3, confirmation.signature, confirmation.id)

    def enough(self, count: int) -> bool:
        """Whether ``count`` members reach the threshold."""
        return count >= self.sharing.cohort.threshold

    def verify_unmask(self, unmask: Unmask) -> UnmaskBody:
        """The content of an UNMASK; raises unless a survivor signed it and it reveals the right kinds for all of U2."""
        if unmask.id not in self.ids:
            raise SurvivorsError("an UNMASK comes from outside the survivors", unmask.id)
        cohort = self.sharing.cohort
        keys.verify(cohort.roster.public_key(unmask.id), "unmask", unmask.body, unmask.signature, unmask.id)
        body = unmask.parse()
        if (body.session_id, body.hu3) != (cohort.session_id, self.hu3):
            raise ConflictError("an UNMASK is for another session or other survivors", unmask.id)
        kinds = {member: share.kind for member, share in body.revealed.items()}
        if kinds != {member: "self_mask" if member in self.ids else "mask_sk" for member in self.sharing.ids}:
            raise MalformedError("an UNMASK must reveal one share of the right kind for every sharer", unmask.id)
        return body
