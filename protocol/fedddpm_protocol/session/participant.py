"""The institution's machine for one secure sum: a message in, a message out.

    TRAINED --join--> JOINED --cohort--> SHARED --shares--> MASKING --upload--> UPLOADED
            --survivors--> CONFIRMED --confirmations--> DONE          anything else --> ABORTED

Session secrets live in this object only. They are forgotten when the machine is done or aborts; a process that dies is
a dropped member of that session and joins the next attempt with fresh keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.roster import Release, Roster
from fedddpm_protocol.agreement.spec import FIXED_POINT, INTEGERS, RINGS, SegmentSpec
from fedddpm_protocol.errors import (
    AccusationError,
    CohortError,
    CohortTooSmallError,
    EncodingError,
    MaskReuseError,
    PhaseError,
    RosterError,
    SpentError,
    SurvivorsError,
)
from fedddpm_protocol.primitives import canonical, keys, ring
from fedddpm_protocol.primitives.keystream import Scratch
from fedddpm_protocol.primitives.shamir import RandomBytes
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session.cohort import Cohort, SessionPlan, Sharing, SurvivorSet, open_cohort, samples_message
from fedddpm_protocol.session.dealing import deal_shares, open_shares
from fedddpm_protocol.session.masking import Stream, mask_streams, masked
from fedddpm_protocol.session.session_secrets import SessionSecrets, seal_secrets
from fedddpm_protocol.session.spent import SpentRecord, check_answers
from fedddpm_protocol.wire.messages import (
    Accusation,
    Confirmation,
    Deal,
    Join,
    JoinBody,
    MaskKind,
    RevealedShare,
    ShareItem,
    Shares,
    Survivor,
    Unmask,
    UnmaskBody,
    UploadManifest,
)
from fedddpm_protocol.wire.phases import ClientState, Step, next_state

T = TypeVar("T")


def _is_widest(segment: SegmentSpec) -> bool:
    """Whether rounding is too fine to tell anything, or there is none."""
    return segment.encoding == INTEGERS or (segment.encoding == FIXED_POINT and segment.bits == max(RINGS))


class Participant:
    """One institution in one session.

    ``floor``: smallest set of sharers or survivors that it accepts; never below the roster's n_min. ``recorded_u3``
    are the survivors this base model and part were already spent on (empty: unspent); with a ``release`` the root's new
    survivors take their place. ``answers``: how many sums over them were answered for.
    """

    def __init__(
        self,
        *,
        identity: keys.SigningKey,
        member_id: str,
        roster: Roster,
        plan: SessionPlan,
        floor: int,
        recorded_u3: tuple[str, ...] = (),
        release: Release | None = None,
        answers: int = 0,
        random_bytes: RandomBytes = secrets.token_bytes,
    ) -> None:
        self.state = ClientState.TRAINED
        self.accusation: Accusation | None = None  # to be sent, when receive_shares raised an AccusationError
        self._identity, self.member_id, self._roster, self.plan = identity, member_id, roster, plan
        self._floor = max(floor, roster.n_min)
        self._release, self._answers = release, answers
        self._allowed_u3 = release.new_u3 if release else recorded_u3
        self._random = random_bytes
        self._secrets: SessionSecrets | None = None
        self._own_join: Join | None = None
        self._cohort: Cohort | None = None
        self._own_deal: Deal | None = None
        self._sharing: Sharing | None = None
        self._survivors: SurvivorSet | None = None
        self._newest_roster = roster
        self._upload_digest = b""
        self._streams: dict[str, list[Stream]] = {}
        self._scratch = Scratch()
        self._chunks: dict[str, dict[int, bytes]] = {segment.name: {} for segment in plan.segments}

    # --- steps -----------------------------------------------------------------------------------------------------

    def join(self, seq: int) -> Join:
        """Step 1, JOIN: fresh keys. ``seq`` must be higher than any sent before, and durable before this is sent."""
        with self._step(Step.JOIN):
            if self._allowed_u3 and self.member_id not in self._allowed_u3:
                raise SpentError(
                    f"part {self.plan.part!r} of this base model is released to {', '.join(self._allowed_u3)} only; "
                    "this institution sits out until the base model changes"
                )
            if self._allowed_u3 and not all(_is_widest(segment) for segment in self.plan.segments):
                raise SpentError(
                    f"part {self.plan.part!r} of this base model was summed before: it is summed again only in a ring "
                    "of 32 bits, because several roundings with public dither tell more than one"
                )
            if self._release is None:
                check_answers(self.plan.part, self._answers)
            channel, mask, self_mask, nonce = (bytearray(self._random(32)) for _ in range(4))
            self._secrets = SessionSecrets(channel, mask, self_mask)
            body = canonical.encode(
                JoinBody(
                    spec_hash=self.plan.spec_hash,
                    id=self.member_id,
                    seq=seq,
                    channel_public_key=keys.x25519_public(bytes(channel)),
                    mask_public_key=keys.x25519_public(bytes(mask)),
                    self_mask_commitment=mask_seeds.self_mask_commitment(self.member_id, bytes(self_mask)),
                    nonce=bytes(nonce),
                    recorded_u3=self._allowed_u3,
                )
            )
            self._own_join = Join(body=body, signature=self._identity.sign("join", body))
            return self._own_join

    def receive_cohort(self, joins: Sequence[Join]) -> Shares:
        """Step 2, SHARES: check U1 and give every other member its sealed shares.

        Raises CohortError (own JOIN missing or altered: another client with this identity, or a lying aggregator),
        CohortTooSmallError, DuplicateError, UnknownMemberError, SignatureError, SpecError, MalformedError (low-order
        keys), SpentError, or RosterError (a newer roster forbids this cohort).
        """
        with self._step(Step.COHORT):
            cohort = open_cohort(self.plan, self._roster, joins)
            if self._own_join is None or all(join.body != self._own_join.body for join in joins):
                raise CohortError(
                    "the cohort does not hold this institution's JOIN as it was sent: either another client uses the "
                    "same identity, or the aggregator altered it"
                )
            if len(cohort.ids) < self._floor:
                raise CohortTooSmallError(f"a cohort of {len(cohort.ids)} is below this institution's {self._floor}")
            self._check_roster(cohort.ids)
            if self._allowed_u3 and cohort.ids != self._allowed_u3:
                raise SpentError(
                    f"part {self.plan.part!r} of this base model is spent on {', '.join(self._allowed_u3)}; "
                    f"a cohort of {', '.join(cohort.ids)} is refused"
                )
            self._cohort = cohort
            shares = deal_shares(cohort, self.member_id, self._identity, self._require(self._secrets), self._random)
            self._own_deal = shares.deal
            return shares

    def receive_shares(self, items: Sequence[ShareItem], deals: Sequence[Deal]) -> None:
        """Step 3, part one: open the shares of the others. ``deals`` are those of U2, this member's own among them.

        Raises CohortError (own DEAL missing or altered), CohortTooSmallError, SignatureError, and what
        :func:`fedddpm_protocol.session.dealing.open_shares` raises. AccusationError: see ``accusation``.
        """
        with self._step(Step.SHARES):
            cohort, held = self._require(self._cohort), self._require(self._secrets)
            if self._own_deal is None or all(deal.body != self._own_deal.body for deal in deals):
                raise CohortError("the deals do not hold this institution's as it was sent", "aggregator")
            self._sharing = cohort.sharing(deals)
            if len(self._sharing.ids) < self._floor:
                raise CohortTooSmallError(
                    f"{len(self._sharing.ids)} sharers are below this institution's {self._floor}"
                )
            self.accusation = open_shares(self._sharing, self.member_id, self._identity, held, items)
            if self.accusation is not None:
                dealers = [one.dealer for one in self.accusation.parse().accused]
                raise AccusationError(f"the shares of {', '.join(dealers)} are not what was committed to", dealers[0])
            own = (self.member_id, bytes(held.mask_private), bytes(held.self_mask))
            self._streams = {segment.name: mask_streams(self._sharing, *own, segment) for segment in self.plan.segments}

    def mask_chunk(self, segment_name: str, index: int, words: ring.Words) -> bytes:
        """Step 3, part two, MASKED: packed ``words + self mask + pair masks`` of one chunk; ``words`` is overwritten.

        Raises EncodingError (wrong size) or MaskReuseError: a chunk may be asked for again, never with other content.
        """
        if self.state is not ClientState.MASKING:
            raise PhaseError(f"masking is not allowed in state {self.state.value!r}")
        segment = self.plan.segment(segment_name)
        start, count = chunk_span(segment, self.plan.chunk_coordinates, index)
        if words.shape != (count,) or words.dtype != ring.word_dtype(segment.bits):
            raise EncodingError(f"chunk {index} of {segment_name!r} has {count} words, got {words.dtype}{words.shape}")
        packed = masked(words, start, self._streams[segment_name], segment, self._scratch)
        digest = hashlib.sha256(packed).digest()
        if self._chunks[segment_name].setdefault(index, digest) != digest:
            self.abort()
            raise MaskReuseError(f"chunk {index} of {segment_name!r} was masked before with other content")
        return packed

    def finish_upload(self, samples: int | None = None) -> UploadManifest:
        """Step 3, end: the digests of all masked chunks; ``samples`` only where the round discloses counts."""
        with self._step(Step.UPLOAD):
            sharing = self._require(self._sharing)
            if self.plan.discloses_samples != (samples is not None):
                raise EncodingError("sample counts are sent exactly where the round discloses them")
            chunks: dict[str, tuple[bytes, ...]] = {}
            for segment in self.plan.segments:
                digests = self._chunks[segment.name]
                missing = set(range(chunk_count(segment, self.plan.chunk_coordinates))) - set(digests)
                if missing:
                    raise EncodingError(f"chunks {sorted(missing)[:5]} of {segment.name!r} were never masked")
                chunks[segment.name] = tuple(digests[index] for index in sorted(digests))
            signature = None
            if samples is not None:
                message = samples_message(sharing.cohort.session_id, self.member_id, samples)
                signature = self._identity.sign("samples", message)
            manifest = UploadManifest(chunks=chunks, samples=samples, samples_signature=signature)
            self._upload_digest = sharing.verify_manifest(self.member_id, manifest)
            return manifest

    def secrets_for(self, auditor: bytes) -> bytes:
        """The secrets of this session's masks, sealed to the roster's ``auditor`` (X25519 public key).

        Kept at home, they open this member's update to the auditor if the member gives them away (see
        :mod:`fedddpm_protocol.session.opened_update`); to anybody else they are noise.
        """
        if self.state not in (ClientState.UPLOADED, ClientState.CONFIRMED):
            raise PhaseError(f"sealing secrets to the auditor is not allowed in state {self.state.value!r}")
        session_id = self._require(self._sharing).cohort.session_id
        return seal_secrets(auditor, session_id, self.member_id, self._require(self._secrets), self._random)

    def receive_survivors(self, survivors: Sequence[Survivor]) -> Confirmation:
        """Step 4, CONFIRM: sign the one set of survivors this session will ever have.

        Raises SurvivorsError (outside U2, or the own upload missing or altered), CohortTooSmallError or SpentError.
        """
        with self._step(Step.SURVIVORS):
            digests = {survivor.id: survivor.upload_digest for survivor in survivors}
            if len(digests) != len(survivors):
                raise SurvivorsError("a survivor is listed twice", "aggregator")
            if digests.get(self.member_id) != self._upload_digest:
                raise SurvivorsError("the survivors do not hold this institution's upload as it was sent", "aggregator")
            self._survivors = self._require(self._sharing).survivors(digests)
            if len(self._survivors.ids) < self._floor:
                raise CohortTooSmallError(f"{len(digests)} survivors are below this institution's {self._floor}")
            self._check_allowed(self._survivors.ids)
            return Confirmation(id=self.member_id, signature=self._identity.sign("confirm", self._survivors.hu3))

    def receive_confirmations(
        self, confirmations: Sequence[Confirmation], commit: Callable[[SpentRecord], None]
    ) -> Unmask:
        """Steps 5 and 6, UNMASK: once t survivors confirmed, spend the base model and reveal one share each.

        ``commit`` must check the record (see :mod:`fedddpm_protocol.session.spent`) and make it durable before it
        returns; the message exists only after that. Raises SignatureError, SurvivorsError, CohortTooSmallError or what
        ``commit`` raises.
        """
        with self._step(Step.CONFIRMATIONS):
            survivors = self._require(self._survivors)
            for confirmation in confirmations:
                survivors.verify_confirmation(confirmation)
            confirmed = {confirmation.id for confirmation in confirmations}
            if not survivors.enough(len(confirmed)):
                needed = survivors.sharing.cohort.threshold
                raise CohortTooSmallError(f"{len(confirmed)} survivors confirmed, {needed} are needed")
            body = UnmaskBody(
                session_id=survivors.sharing.cohort.session_id,
                hu3=survivors.hu3,
                revealed={member: self._revealed(survivors, member) for member in survivors.sharing.ids},
            ).encode()
            message = Unmask(id=self.member_id, body=body, signature=self._identity.sign("unmask", body))
            commit(
                SpentRecord(
                    base_model_hash=self.plan.base_model_hash,
                    part=self.plan.part,
                    u3=survivors.ids,
                    session_id=survivors.sharing.cohort.session_id,
                    unmask=message,
                    release=self._release,
                )
            )
        self._forget()
        return message

    # --- around the steps ------------------------------------------------------------------------------------------

    def check_newer_roster(self, newer: Roster) -> None:
        """Abort with RosterError if ``newer`` removes a member of the cohort or raises c_max before CONFIRMED.

        It is remembered, so that a cohort that arrives later is held against it too.
        """
        if self.state in (ClientState.CONFIRMED, ClientState.DONE, ClientState.ABORTED):
            return
        if newer.version > self._newest_roster.version:
            self._newest_roster = newer
        try:
            self._check_roster(self._cohort.ids if self._cohort else (self.member_id,))
        except RosterError:
            self.abort()
            raise

    def abort(self) -> None:
        """Forget every secret of the session; nothing of it can be continued."""
        self.state = ClientState.ABORTED
        self._forget()

    @property
    def session_id(self) -> bytes | None:
        """32 bytes once the cohort is known."""
        return self._cohort.session_id if self._cohort else None

    @property
    def cohort_ids(self) -> tuple[str, ...]:
        """U1, sorted; PhaseError before the cohort is known."""
        return self._require(self._cohort).ids

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        try:
            following = next_state(self.state, step)
            yield
        except BaseException:
            self.abort()
            raise
        self.state = following

    def _forget(self) -> None:
        if self._secrets is not None:
            self._secrets.forget()
        self._secrets = None
        self._streams.clear()

    def _revealed(self, survivors: SurvivorSet, dealer: str) -> RevealedShare:
        kind: MaskKind = "self_mask" if dealer in survivors.ids else "mask_sk"
        dealt = self._require(self._secrets).shares[dealer].of(kind)
        revealed = RevealedShare(kind, dealt.share, dealt.nonce)
        if not survivors.sharing.is_as_dealt(dealer, self.member_id, revealed):  # memory went bad since it was checked
            raise EncodingError(f"the share of {dealer!r} is not the one that was received; this machine is at fault")
        return revealed

    def _check_roster(self, cohort: tuple[str, ...]) -> None:
        newest = self._newest_roster
        if newest is not self._roster and self._roster.tightens_against(newest, cohort):
            raise RosterError(f"roster version {newest.version} removes a member of this session or raises c_max")

    def _check_allowed(self, u3: tuple[str, ...]) -> None:
        if self._allowed_u3 and u3 != self._allowed_u3:
            raise SpentError(
                f"part {self.plan.part!r} of this base model is spent on {', '.join(self._allowed_u3)}; "
                f"survivors {', '.join(u3)} are refused"
            )

    @staticmethod
    def _require(value: T | None) -> T:
        if value is None:
            raise PhaseError("the session has no such state yet")
        return value
