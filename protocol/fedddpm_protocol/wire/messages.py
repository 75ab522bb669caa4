"""What travels between institutions and aggregator: frozen, bounded, and closed to unknown fields.

Bytes travel as standard base64 in JSON. What is signed is always the canonical bytes inside, never the JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical

MAX_COHORT = 128  # members of one sum
MAX_MEMBERS = 10_000  # of a roster
MAX_SEGMENTS = 8  # named by one upload
MAX_CHUNKS = 2**16  # digests of one segment
MaskKind = Literal["self_mask", "mask_sk"]


def _decode_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not standard base64") from error
    if base64.b64encode(decoded).decode() != value:
        raise ValueError("not canonical base64")
    return decoded


# Standard base64 in its one form: padded, and the bits that stand for nothing are zero.
_ANY, _LAST_OF_2, _LAST_OF_3 = "[A-Za-z0-9+/]", "[AQgw]", "[AEIMQUYcgkosw048]"
_TAILS = {0: "", 1: f"{_ANY}{_LAST_OF_2}==", 2: f"{_ANY}{{2}}{_LAST_OF_3}="}


def _base64_schema(most: int, least: int) -> WithJsonSchema:
    """The JSON schema of ``least`` to ``most`` bytes; exact where these are the same."""
    if least == most:
        pattern = f"^{_ANY}{{{4 * (most // 3)}}}{_TAILS[most % 3]}$"
    else:
        pattern = f"^(?:{_ANY}{{4}})*(?:{_TAILS[1]}|{_TAILS[2]})?$"
    lengths = {"minLength": _base64_length(least), "maxLength": _base64_length(most)}
    return WithJsonSchema({"type": "string", "contentEncoding": "base64", "pattern": pattern, **lengths})


def _base64_length(size: int) -> int:
    return 4 * ((size + 2) // 3)


Base64 = (
    BeforeValidator(_decode_base64),
    PlainSerializer(lambda raw: base64.b64encode(raw).decode(), when_used="json"),
)
Bytes32 = Annotated[bytes, *Base64, Field(min_length=32, max_length=32), _base64_schema(32, 32)]
Signature = Annotated[bytes, *Base64, Field(min_length=64, max_length=64), _base64_schema(64, 64)]
SealedBytes = Annotated[bytes, *Base64, Field(min_length=156, max_length=156), _base64_schema(156, 156)]
Body = Annotated[bytes, *Base64, Field(min_length=1, max_length=2**20), _base64_schema(2**20, 1)]
# What one member signs in a session names the other members, once or with a share of each. (Multiples of 3 are exact in
# base64.)
JoinBytes = Annotated[bytes, *Base64, Field(min_length=1, max_length=12_288), _base64_schema(12_288, 1)]
UnmaskBytes = Annotated[bytes, *Base64, Field(min_length=1, max_length=24_576), _base64_schema(24_576, 1)]
DealBytes = Annotated[bytes, *Base64, Field(min_length=1, max_length=36_864), _base64_schema(36_864, 1)]
AccusationBytes = Annotated[bytes, *Base64, Field(min_length=1, max_length=24_576), _base64_schema(24_576, 1)]
MemberId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


SegmentName = Annotated[str, Field(min_length=1, max_length=128)]
ChunkDigests = Annotated[tuple[Bytes32, ...], Field(max_length=MAX_CHUNKS)]


class Message(BaseModel):
    """Base of all wire messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class SignedDocument(Message):
    """Canonical bytes (roster, round spec or result) and the signature over them."""

    body: Body
    signature: Signature


@dataclass(frozen=True)
class JoinBody:
    """The signed content of a JOIN, in canonical order."""

    spec_hash: bytes
    id: str
    seq: int
    channel_public_key: bytes  # X25519 c_i
    mask_public_key: bytes  # X25519 m_i
    self_mask_commitment: bytes
    nonce: bytes
    recorded_u3: tuple[str, ...]  # survivors of the sum this base was spent on; empty: unspent

    def __post_init__(self) -> None:
        fields = (self.spec_hash, self.channel_public_key, self.mask_public_key, self.self_mask_commitment, self.nonce)
        if any(len(field) != 32 for field in fields):
            raise ValueError("a JOIN field must have 32 bytes")
        if list(self.recorded_u3) != sorted(set(self.recorded_u3), key=str.encode):
            raise ValueError("recorded survivors must be sorted and distinct")


class Join(Message):
    """Step 1: fresh session keys, signed by the institution's identity."""

    body: JoinBytes
    signature: Signature

    def parse(self) -> JoinBody:
        """The content; MalformedError if it is not canonical."""
        return canonical.decode(JoinBody, self.body)


class ShareItem(Message):
    """Step 2: one member's two shares, sealed to one other member (12-byte nonce, then ciphertext and tag)."""

    sender: MemberId
    recipient: MemberId
    sealed: SealedBytes


@dataclass(frozen=True)
class Commitments:
    """What a dealer commits to for one member; ``sealed`` and ``channel_key`` are empty in the line of its own."""

    recipient: str
    sealed: bytes  # SHA-256 of the sealed item
    channel_key: bytes  # to the key that it is sealed with
    self_mask: bytes  # to the recipient's share of the self mask
    mask_sk: bytes  # and to that of the mask key

    def __post_init__(self) -> None:
        if len(self.self_mask) != 32 or len(self.mask_sk) != 32 or len(self.sealed) not in (0, 32):
            raise ValueError("a commitment must have 32 bytes")
        if len(self.channel_key) != len(self.sealed):
            raise ValueError("a sealed item and its key are committed to together, or neither")

    def of(self, kind: MaskKind) -> bytes:
        """The commitment to a share of ``kind``."""
        return self.self_mask if kind == "self_mask" else self.mask_sk


@dataclass(frozen=True)
class DealBody:
    """The signed content of a DEAL: a line for every member of the cohort, in order, the dealer's own among them."""

    session_id: bytes
    dealer: str
    lines: tuple[Commitments, ...]

    def __post_init__(self) -> None:
        if len(self.session_id) != 32:
            raise ValueError("a session id must have 32 bytes")
        if [line.recipient for line in self.lines if not line.sealed] != [self.dealer]:
            raise ValueError("a dealer seals an item to everybody but itself")


class Deal(Message):
    """Step 2: what one member commits to, for everybody to see before anything is masked."""

    body: DealBytes
    signature: Signature

    def parse(self) -> DealBody:
        """The content; MalformedError if it is not canonical."""
        return canonical.decode(DealBody, self.body)


class Shares(Message):
    """Step 2: the sealed shares of one sender, and its commitments to them."""

    items: Annotated[tuple[ShareItem, ...], Field(max_length=MAX_COHORT)]
    deal: Deal


@dataclass(frozen=True)
class Accused:
    """A dealer whose item is wrong, and the key that shows it: of this pair and this direction, and of nothing else."""

    dealer: str
    deal_hash: bytes  # of the deal that the accuser saw: a dealer that signed two cannot turn it against the accuser
    channel_key: bytes

    def __post_init__(self) -> None:
        if len(self.deal_hash) != 32 or len(self.channel_key) != 32:
            raise ValueError("the hash of a deal and a channel key must have 32 bytes")


@dataclass(frozen=True)
class AccusationBody:
    """The signed content of an accusation."""

    session_id: bytes
    accuser: str
    accused: tuple[Accused, ...]

    def __post_init__(self) -> None:
        dealers = [one.dealer for one in self.accused]
        if len(self.session_id) != 32 or not dealers or dealers != sorted(set(dealers), key=str.encode):
            raise ValueError("an accusation names a session, and each dealer once and in order")


class Accusation(Message):
    """Instead of step 3: what a member got is not what its dealers committed to. It leaves the session with it."""

    id: MemberId
    body: AccusationBytes
    signature: Signature

    def parse(self) -> AccusationBody:
        """The content; MalformedError if it is not canonical."""
        return canonical.decode(AccusationBody, self.body)


class UploadManifest(Message):
    """Step 3: SHA-256 of every masked chunk, segment by segment; ``samples`` only where counts are disclosed."""

    chunks: Annotated[dict[SegmentName, ChunkDigests], Field(max_length=MAX_SEGMENTS)]
    samples: Annotated[int, Field(ge=1, le=2**40)] | None = None
    samples_signature: Signature | None = None


class Survivor(Message):
    """Step 4: a member whose upload arrived, and its digest."""

    id: MemberId
    upload_digest: Bytes32


class Survivors(Message):
    """Step 4: U3, sorted by id."""

    survivors: Annotated[tuple[Survivor, ...], Field(min_length=1, max_length=MAX_COHORT)]


class Confirmation(Message):
    """Step 4: one member's signature over hU3."""

    id: MemberId
    signature: Signature


class Confirmations(Message):
    """Step 5: all confirmations that arrived."""

    confirmations: Annotated[tuple[Confirmation, ...], Field(max_length=MAX_COHORT)]


@dataclass(frozen=True)
class RevealedShare:
    """One share in an UNMASK: of the self mask of a survivor, or of the mask key of a dropped member."""

    kind: MaskKind
    share: bytes  # 32 bytes
    nonce: bytes  # 32 bytes: opens its dealer's commitment


@dataclass(frozen=True)
class UnmaskBody:
    """The signed content of an UNMASK."""

    session_id: bytes
    hu3: bytes
    revealed: Mapping[str, RevealedShare]  # by member id

    def encode(self) -> bytes:
        """``LP(sid, hU3, then id, kind, share, nonce for each member in order)``."""
        fields = [self.session_id, self.hu3]
        for member in sorted(self.revealed, key=str.encode):
            item = self.revealed[member]
            fields += [member.encode(), item.kind.encode(), item.share, item.nonce]
        return canonical.lp(*fields)

    @classmethod
    def decode(cls, body: bytes) -> UnmaskBody:
        """Inverse of :meth:`encode`; MalformedError unless canonical."""
        fields = canonical.unlp(body)
        if len(fields) < 2 or len(fields) % 4 != 2 or any(len(field) != 32 for field in fields[:2]):
            raise MalformedError("an UNMASK is not of the form (sid, hU3, (id, kind, share, nonce)..)")
        revealed: dict[str, RevealedShare] = {}
        for member, kind, share, nonce in zip(*(fields[first::4] for first in range(2, 6)), strict=True):
            if kind not in (b"self_mask", b"mask_sk") or len(share) != 32 or len(nonce) != 32:
                raise MalformedError("an UNMASK holds an unknown kind, or a share or nonce that has not 32 bytes")
            known: MaskKind = "self_mask" if kind == b"self_mask" else "mask_sk"
            revealed[_member_name(member)] = RevealedShare(known, share, nonce)
        decoded = cls(fields[0], fields[1], revealed)
        if decoded.encode() != body:
            raise MalformedError("an UNMASK is not in its canonical form")
        return decoded


def _member_name(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedError("a member id is not ASCII") from error


class Unmask(Message):
    """Step 6: the one answer that lets the aggregator open this sum."""

    id: MemberId
    body: UnmaskBytes
    signature: Signature

    def parse(self) -> UnmaskBody:
        """The content; MalformedError if it is not canonical."""
        return UnmaskBody.decode(self.body)


class Unmasks(Message):
    """What survivors may see of a sum that is published: the answers that it was opened with."""

    unmasks: Annotated[tuple[Unmask, ...], Field(max_length=MAX_COHORT)]
