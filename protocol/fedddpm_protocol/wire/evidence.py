"""Evidence: signed messages of one session that convict a member, for anybody who has the roster.

What a piece of evidence shows is not written in it: it follows from the messages (see ``session.verdicts``). It holds
no secret but what was revealed in the session: a key of one pair, or shares that were released.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from fedddpm_protocol.wire.messages import (
    MAX_COHORT,
    Accusation,
    Bytes32,
    Deal,
    Join,
    MaskKind,
    MemberId,
    Message,
    SealedBytes,
    SegmentName,
    SignedDocument,
    Survivor,
    Unmask,
)


class ItemProof(Message):
    """An accusation, and the sealed item that it is about: wrong is either the item or the accusation."""

    about: Literal["item"] = "item"
    deal: Deal
    sealed: SealedBytes
    accusation: Accusation


class AccusersProof(Message):
    """Accusations against one dealer by more members than may conspire, none of which can be decided by itself."""

    about: Literal["accusers"] = "accusers"
    deal: Deal
    accusations: Annotated[tuple[Accusation, ...], Field(min_length=1, max_length=MAX_COHORT)]


class Sharer(Message):
    """A member of U2 and the hash of its deal: both are under hU2."""

    id: MemberId
    deal_hash: Bytes32


class AnswerProof(Message):
    """An UNMASK that reveals what does not open the dealer's commitment; U2 and U3 bind its signer to that deal."""

    about: Literal["answer"] = "answer"
    deal: Deal
    unmask: Unmask
    sharers: Annotated[tuple[Sharer, ...], Field(min_length=1, max_length=MAX_COHORT)]
    survivors: Annotated[tuple[Survivor, ...], Field(min_length=1, max_length=MAX_COHORT)]


class Opening(Message):
    """A share that opens its dealer's commitment."""

    recipient: MemberId
    share: Bytes32
    nonce: Bytes32


class SecretProof(Message):
    """A threshold of shares, all as committed, that do not make up the secret in the dealer's JOIN."""

    about: Literal["secret"] = "secret"
    deal: Deal
    kind: MaskKind
    openings: Annotated[tuple[Opening, ...], Field(min_length=1, max_length=MAX_COHORT)]


Proof = Annotated[ItemProof | AccusersProof | AnswerProof | SecretProof, Field(discriminator="about")]


class Evidence(Message):
    """A proof, with what identifies its session: the signed specification and the JOINs of the cohort."""

    spec: SignedDocument
    session: SegmentName  # the part, with the number of the shard where there are shards
    joins: Annotated[tuple[Join, ...], Field(min_length=2, max_length=MAX_COHORT)]
    proof: Proof

    @property
    def sha256(self) -> str:
        """The name of this evidence: hex SHA-256 of its canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
