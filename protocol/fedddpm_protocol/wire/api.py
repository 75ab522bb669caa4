"""Replies of the aggregator's HTTP interface, shared by both sides so that neither guesses."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from fedddpm_protocol.untrusted.plain_text import plain
from fedddpm_protocol.wire.messages import (
    MAX_CHUNKS,
    MAX_COHORT,
    MAX_MEMBERS,
    ChunkDigests,
    Deal,
    Join,
    MemberId,
    Message,
    SegmentName,
    ShareItem,
    SignedDocument,
)
from fedddpm_protocol.wire.phases import Phase


def _shown(most: int) -> tuple[AfterValidator, WithJsonSchema]:
    """Words for people: cleaned and cut where they are parsed, and where they are written."""
    return AfterValidator(partial(plain, most=most)), WithJsonSchema({"type": "string", "maxLength": most})


MAX_COUNT = 2**53 - 1  # what every reader of JSON has exactly, and every database
MAX_INT32 = 2**31 - 1  # of rounds, attempts and indices
RESULTS = 100  # of one page
MAX_SESSIONS = 3 * -(-MAX_MEMBERS // 3)  # parts of a method, times shards of the smallest size
SEGMENTS = 2  # of a session
HexHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
RoundIndex = Annotated[int, Field(ge=0, le=MAX_INT32)]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Words = Annotated[str, *_shown(4000)]
ShortWords = Annotated[str, *_shown(300)]
UnixSeconds = Annotated[float, Field(ge=0, le=2**33, allow_inf_nan=False)]  # until the year 2242
PROBLEM_TYPE = "urn:fedddpm:problem:"
# Every request is signed (RFC 9421, ed25519) over these components, under this label and with a fresh nonce.
SIGNED_COMPONENTS = ("@method", "@authority", "@path", "@query", "content-digest")
SIGNATURE_LABEL = "sig1"
SIGNATURE_MAX_AGE_S = 300  # unless an aggregator is set otherwise
NONCE_BYTES = 18  # random ones, in base64 for URLs
MIN_NONCE, MAX_NONCE = 16, 128  # characters that an aggregator takes


class Reply(Message):
    """Base of the aggregator's unsigned replies.

    Fields that are not known are ignored, so that an institution can talk to a later aggregator under the same /v1.
    What is signed inside stays as strict as ever. Every field has a bound, from which that of the whole reply follows
    (see ``bounds``).
    """

    model_config = ConfigDict(extra="ignore")


class SessionState(Reply):
    """One secure sum of the current attempt."""

    phase: Phase
    cohort_size: Count
    posted: Count  # members that have done their part of this phase
    reason: ShortWords | None = None  # why a session failed


class Exclusion(Reply):
    """A member that is not admitted now, and the evidence why (at /v1/evidence)."""

    member: MemberId
    words: ShortWords
    evidence: HexHash


class RunState(Reply):
    """Everything an institution needs to know what to do next; ``version`` grows with every change."""

    version: Count
    roster_version: Count
    run: MemberId | None  # as a name
    method: Name | None
    status: Literal["waiting", "running", "finished", "stalled"]
    reason: Words | None = None
    round: RoundIndex
    rounds: RoundIndex
    attempt: RoundIndex
    spec: SignedDocument | None
    charter: SignedDocument | None = None  # of the run, as the root signed it
    sessions: Annotated[dict[Name, SessionState], Field(max_length=MAX_SESSIONS)]
    results: RoundIndex  # finished rounds of the run
    last_result: HexHash | None
    excluded: Annotated[tuple[Exclusion, ...], Field(max_length=MAX_COHORT)] = ()
    server_time: UnixSeconds  # for humans and for clock correction only


class JoinReceipt(Reply):
    """What became of a JOIN."""

    outcome: Literal["accepted", "replaced", "unchanged", "stale"]
    newest_seq: Annotated[int, Field(ge=0, le=2**63 - 1)]  # as a JOIN signs it


class CohortReply(Reply):
    """U1: the JOINs of the closed cohort."""

    joins: Annotated[tuple[Join, ...], Field(max_length=MAX_COHORT)]


class ShareInbox(Reply):
    """Shares addressed to the asking member, and U2 as the aggregator sees it, with what everybody committed to."""

    items: Annotated[tuple[ShareItem, ...], Field(max_length=MAX_COHORT)]
    deals: Annotated[tuple[Deal, ...], Field(max_length=MAX_COHORT)]
    sharers: Annotated[tuple[MemberId, ...], Field(max_length=MAX_COHORT)]


ChunkIndex = Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]
_INDICES: dict[str, JsonValue] = {"propertyNames": {"pattern": "^[0-9]+$", "maxLength": len(str(MAX_CHUNKS))}}
StoredChunks = Annotated[dict[ChunkIndex, HexHash], Field(max_length=MAX_CHUNKS, json_schema_extra=_INDICES)]


class UploadStatus(Reply):
    """Which chunks of the asking member's upload arrived, by segment and index."""

    chunks: Annotated[dict[Name, StoredChunks], Field(max_length=SEGMENTS)]
    complete: bool


class UploadDigests(Reply):
    """SHA-256 of every masked chunk of one survivor, for the other survivors: its manifest without sample counts."""

    chunks: Annotated[dict[SegmentName, ChunkDigests], Field(max_length=SEGMENTS)]


class ResultsPage(Reply):
    """Signed results in round order: as many as fit ``most_bytes``, and one at least."""

    most_bytes: ClassVar[int] = 32 * 2**20
    results: Annotated[tuple[SignedDocument, ...], Field(max_length=RESULTS)]


class Problem(Reply):
    """An RFC 9457 problem document."""

    type: ShortWords
    title: ShortWords
    status: Annotated[int, Field(ge=100, le=599)]
    detail: Words
    code: Annotated[str, *_shown(64)]
    server_time: float | None = None  # as it stands there: who corrects a clock by it looks whether it can be
