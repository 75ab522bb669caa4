"""Replies of the aggregator's HTTP interface, shared by both sides so that neither guesses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedddpm_protocol.messages import Join, MemberId, Message, ShareItem, SignedDocument
from fedddpm_protocol.phases import Phase

HexHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PROBLEM_TYPE = "urn:fedddpm:problem:"
SIGNED_COMPONENTS = ("@method", "@authority", "@path", "@query", "content-digest")  # RFC 9421, every request
SIGNATURE_MAX_AGE_S = 300


class Reply(Message):
    """Base of the aggregator's unsigned replies.

    Fields that are not known are ignored, so that an institution can talk to a later aggregator under the same /v1.
    What is signed inside stays as strict as ever.
    """

    model_config = ConfigDict(extra="ignore")


class SessionState(Reply):
    """One secure sum of the current attempt."""

    phase: Phase
    cohort_size: Annotated[int, Field(ge=0)]
    posted: Annotated[int, Field(ge=0)]  # members that have done their part of this phase
    reason: str | None = None  # why a session failed


class RunState(Reply):
    """Everything an institution needs to know what to do next; ``version`` grows with every change."""

    version: int
    roster_version: int
    run: str | None
    method: str | None
    status: Literal["waiting", "running", "finished", "stalled"]
    reason: str | None = None
    round: int
    rounds: int
    attempt: int
    spec: SignedDocument | None
    sessions: dict[str, SessionState]
    results: int  # finished rounds of the run
    last_result: HexHash | None
    server_time: float  # Unix seconds, for humans and for clock correction only


class JoinReceipt(Reply):
    """What became of a JOIN."""

    outcome: Literal["accepted", "replaced", "unchanged", "stale"]
    newest_seq: int


class CohortReply(Reply):
    """U1: the JOINs of the closed cohort."""

    joins: Annotated[tuple[Join, ...], Field(max_length=128)]


class ShareInbox(Reply):
    """Shares addressed to the asking member, and U2 as the aggregator sees it."""

    items: Annotated[tuple[ShareItem, ...], Field(max_length=128)]
    sharers: tuple[MemberId, ...]


class UploadStatus(Reply):
    """Which chunks of the asking member's upload arrived, by segment and index."""

    chunks: dict[str, dict[int, HexHash]]
    complete: bool


class ResultsPage(Reply):
    """Signed results in round order."""

    results: tuple[SignedDocument, ...]


class Problem(Reply):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    server_time: float | None = None
