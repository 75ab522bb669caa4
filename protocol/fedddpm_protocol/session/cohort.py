"""The three sets of a session, as both sides see them: who joined (U1), who shared (U2), who uploaded (U3).

Each set is checked when it is built and cannot be changed afterwards; the next one can only be built from it.
"""

from __future__ import annotations

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
from fedddpm_protocol.session.sealed import verify_item
from fedddpm_protocol.wire.messages import (
    Confirmation,
    Join,
    JoinBody,
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
    reporters = reporters_by_session(method, spec.hash, members_of(method, roster, session))[part]
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

    def verify_shares(self, sender: str, shares: Shares) -> None:
        """Raise unless ``shares`` are one signed item from ``sender`` to every other member."""
        self.body(sender)
        recipients = [item.recipient for item in shares.items]
        if sorted(recipients) != sorted(member for member in self.ids if member != sender):
            raise ShareError("shares must go once to every other member of the cohort", sender)
        for item in shares.items:
            if item.sender != sender:
                raise ShareError(f"a share by {item.sender!r} stands among those of {sender!r}", sender)
            verify_item(item, self.roster.public_key(sender), self.session_id)

    def sharing(self, senders: Iterable[str]) -> Sharing:
        """U2; CohortTooSmallError below ``max(t, n_min)``, UnknownMemberError for an outsider."""
        ids = tuple(sorted({self.body(sender).id for sender in senders}, key=str.encode))
        if len(ids) < self.quorum:
            raise CohortTooSmallError(f"{len(ids)} members shared their keys, {self.quorum} are needed")
        return Sharing(self, ids)


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


@dataclass(frozen=True)
class Sharing:
    """U2: the members whose shares arrived. ``hu2`` goes into every mask."""

    cohort: Cohort
    ids: tuple[str, ...]

    @cached_property
    def hu2(self) -> bytes:
        """``H("u2", sid, ids)``: different views of U2 give masks that do not cancel."""
        return tagged_hash("u2", self.cohort.session_id, *(member.encode() for member in self.ids))

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
        """``H("u3", sid, hU2, then id, digest for each)``."""
        pairs = (
            field for member, digest in zip(self.ids, self.digests, strict=True) for field in (member.encode(), digest)
        )
        return tagged_hash("u3", self.sharing.cohort.session_id, self.sharing.hu2, *pairs)

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
