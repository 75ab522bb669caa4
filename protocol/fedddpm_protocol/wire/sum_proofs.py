"""A confirmed sum, the proof that what was published for it is another one, and an update sealed to the auditor.

Files, not messages. All hold signed documents as they were signed, so that they speak for themselves. A proof is
checked by ``session.checked_sum`` with nothing but the root's public key, a sealed update by ``session.opened_update``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedddpm_protocol.wire.api import Name
from fedddpm_protocol.wire.messages import (
    MAX_CHUNKS,
    MAX_COHORT,
    MAX_SEGMENTS,
    Base64,
    ChunkDigests,
    Confirmation,
    Deal,
    Join,
    MemberId,
    Message,
    SegmentName,
    Signature,
    SignedDocument,
    Survivor,
    Unmask,
)

MAX_CHUNK_BYTES = 2**26  # of masked words
MAX_SEALING_BYTES = 64  # more than a sealed text is longer than its plain one
ChunkBytes = Annotated[bytes, *Base64, Field(max_length=MAX_CHUNK_BYTES)]


class ConfirmedSum(Message):
    """What a survivor knows of a sum when it answers: the sets, and the signatures over the last of them."""

    roster: SignedDocument
    spec: SignedDocument
    session: Name
    joins: Annotated[tuple[Join, ...], Field(max_length=MAX_COHORT)]  # U1
    deals: Annotated[tuple[Deal, ...], Field(max_length=MAX_COHORT)]  # of U2
    survivors: Annotated[tuple[Survivor, ...], Field(max_length=MAX_COHORT)]  # U3
    confirmations: Annotated[tuple[Confirmation, ...], Field(max_length=MAX_COHORT)]


class ShownSum(Message):
    """What the aggregator shows the survivors of a published sum."""

    unmasks: Annotated[tuple[Unmask, ...], Field(max_length=MAX_COHORT)]
    uploads: Annotated[
        dict[MemberId, Annotated[dict[SegmentName, ChunkDigests], Field(max_length=MAX_SEGMENTS)]],
        Field(max_length=MAX_COHORT),
    ]
    opened: ChunkDigests  # SHA-256 of the published chunks of the values


class FalseSum(Message):
    """Proof of a false sum; without ``shown``: the result names other uploads than those that were confirmed."""

    confirmed: ConfirmedSum
    result: SignedDocument
    shown: ShownSum | None = None
    segment: SegmentName | None = None
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)] = 0
    words: Annotated[dict[MemberId, ChunkBytes], Field(max_length=MAX_COHORT)] = Field(default_factory=dict)  # masked


class SealedUpdate(Message):
    """One member's part of a confirmed sum, for the roster's auditor alone: its masks' secrets, and its words.

    Anybody can seal something to the auditor; the signature says that the member did.
    """

    confirmed: ConfirmedSum
    member: MemberId
    secrets: Annotated[bytes, *Base64, Field(max_length=256)]
    signature: Signature
    words: Annotated[
        dict[
            SegmentName,
            Annotated[
                tuple[Annotated[bytes, *Base64, Field(max_length=MAX_CHUNK_BYTES + MAX_SEALING_BYTES)], ...],
                Field(max_length=MAX_CHUNKS),
            ],
        ],
        Field(max_length=MAX_SEGMENTS),
    ]
