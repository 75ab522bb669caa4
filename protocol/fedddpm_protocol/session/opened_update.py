"""One member's update in a confirmed sum, opened to the roster's auditor by the member itself.

Only the member can: it gives the words that it sent, and the secrets of their masks, which it has from the session as
sealed to the auditor, under its signature. The auditor puts the masks on again. hU3, which t survivors signed, covers
the digest of what was sent under them, and the member's JOIN commits to the secrets: other words than those in the sum
cannot be shown, and nobody can show any in the member's place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span, upload_digest
from fedddpm_protocol.agreement.documents import open_spec
from fedddpm_protocol.agreement.roster import open_roster
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec, SegmentSpec
from fedddpm_protocol.errors import MalformedError, OtherUpdateError, SurvivorsError
from fedddpm_protocol.primitives import keys, ring
from fedddpm_protocol.primitives.canonical import lp, tagged_hash
from fedddpm_protocol.primitives.keystream import Scratch
from fedddpm_protocol.primitives.shamir import RandomBytes
from fedddpm_protocol.session.checked_sum import confirmed_survivors
from fedddpm_protocol.session.cohort import SurvivorSet
from fedddpm_protocol.session.coordinator import is_secret_of
from fedddpm_protocol.session.masking import mask_streams, masked
from fedddpm_protocol.session.sealing import seal_to, unseal
from fedddpm_protocol.session.session_secrets import unseal_secrets
from fedddpm_protocol.wire.sum_proofs import SealedUpdate

_WORDS, _SIGNED = "audit-words", "opened-update"


def seal_words(
    auditor: bytes, session_id: bytes, member: str, segment: str, index: int, packed: bytes, random_bytes: RandomBytes
) -> bytes:
    """The packed words of one chunk, without any mask, for the auditor alone."""
    return seal_to(auditor, _WORDS, _place(session_id, member, segment, index), packed, random_bytes)


def sign_paper(
    confirmed: SurvivorSet,
    member: str,
    identity: keys.SigningKey,
    secrets: bytes,
    words: Mapping[str, tuple[bytes, ...]],
) -> bytes:
    """The member's signature over all that it gives to the auditor."""
    return identity.sign(_SIGNED, _signed(confirmed, member, secrets, words))


@dataclass(frozen=True)
class OpenedUpdate:
    """What the auditor reads; made by :func:`open_update`, and not yet proven to be what was sent."""

    paper: SealedUpdate
    key: keys.SealingKey
    spec: RoundSpec
    survivors: SurvivorSet

    @property
    def part(self) -> PartSpec:
        """The part of the round that was summed."""
        return self.spec.part(self.paper.confirmed.session)

    def words(self, segment: SegmentSpec, index: int) -> ring.Words:
        """The member's words of one chunk, as it says; MalformedError if they do not open or have another length."""
        sealed = self.paper.words.get(segment.name, ())
        _, count = chunk_span(segment, self.spec.chunk_coordinates, index)
        if index >= len(sealed):
            raise MalformedError(f"chunk {index} of {segment.name!r} is missing", self.paper.member)
        place = _place(self.survivors.sharing.cohort.session_id, self.paper.member, segment.name, index)
        return ring.unpack(unseal(self.key, _WORDS, place, sealed[index]), segment.bits, count)

    def require_sent(self) -> None:
        """Put the masks on again.

        Raises:
            OtherUpdateError: under them the words are not what the member sent.
            MalformedError: the secrets are not those of its JOIN, or something does not open.
        """
        sharing, member = self.survivors.sharing, self.paper.member
        body = sharing.cohort.body(member)
        mask_private, self_mask = unseal_secrets(self.key, sharing.cohort.session_id, member, self.paper.secrets)
        if not (is_secret_of(body, "mask_sk", mask_private) and is_secret_of(body, "self_mask", self_mask)):
            raise MalformedError("the sealed secrets are not those of the member's JOIN", member)
        chunks, scratch = {}, Scratch()
        for segment in sharing.cohort.plan.segments:
            streams = mask_streams(sharing, member, mask_private, self_mask, segment)
            digests = []
            for index in range(chunk_count(segment, self.spec.chunk_coordinates)):
                start, _ = chunk_span(segment, self.spec.chunk_coordinates, index)
                words = self.words(segment, index).copy()
                digests.append(hashlib.sha256(masked(words, start, streams, segment, scratch)).digest())
            chunks[segment.name] = tuple(digests)
        sent = self.survivors.digests[self.survivors.ids.index(member)]
        if upload_digest(member, sharing.cohort.plan.segments, self.spec.chunk_coordinates, chunks) != sent:
            raise OtherUpdateError("the words that were shown to the auditor are not those that it sent", member)


def open_update(paper: SealedUpdate, key: keys.SealingKey, root_public_key: bytes) -> OpenedUpdate:
    """The papers of a sealed update, all signatures checked.

    Raises:
        PeerProtocolError: signatures or sets do not hold, that of the member among them, another root signed the
            roster, the member is in no such sum, or the roster names another auditor than ``key``.
    """
    confirmed = paper.confirmed
    roster = open_roster(confirmed.roster, root_public_key)
    if roster.auditor is None or roster.auditor.sealing_key != key.public_key:
        named = "nobody" if roster.auditor is None else roster.auditor.id
        raise MalformedError(
            f"roster version {roster.version} names {named} as auditor, with another key than this one"
        )
    spec = open_spec(confirmed.spec, roster)
    survivors = confirmed_survivors(confirmed, roster, spec)
    if paper.member not in survivors.ids:
        raise SurvivorsError("the member's update is not in this sum", paper.member)
    signed = _signed(survivors, paper.member, paper.secrets, paper.words)
    keys.verify(roster.public_key(paper.member), _SIGNED, signed, paper.signature, paper.member)
    return OpenedUpdate(paper, key, spec, survivors)


def _signed(survivors: SurvivorSet, member: str, secrets: bytes, words: Mapping[str, tuple[bytes, ...]]) -> bytes:
    """``H("opened-update", hU3, id, sealed secrets, then name and LP(sealed chunks) of each segment, by name)``."""
    chunks = (field for name in sorted(words) for field in (name.encode(), lp(*words[name])))
    return tagged_hash(_SIGNED, survivors.hu3, member.encode(), secrets, *chunks)


def _place(session_id: bytes, member: str, segment: str, index: int) -> tuple[bytes, ...]:
    return session_id, member.encode(), segment.encode(), str(index).encode()
