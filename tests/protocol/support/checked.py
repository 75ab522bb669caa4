"""A published sum with all that a survivor keeps and is shown of it; honest, or moved by a lying aggregator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from tests.protocol.support.sessions import SERVER, Session, make_participants, make_roster
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.chunks import chunk_span, segment_digest
from fedddpm_protocol.agreement.documents import sign_result, sign_spec
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import sign_roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import SurvivorSet, session_plan
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum, FalseSum, ShownSum

ROOT = SigningKey(b"\x77" * 32)
COORDINATES, CHUNK = 320, 64  # five chunks


@dataclass
class Published:
    """A round of one sum, and what was signed about it."""

    confirmed: ConfirmedSum
    shown: ShownSum
    result: SignedDocument
    part: PartResult
    survivors: SurvivorSet
    masked: Mapping[str, Mapping[str, list[bytes]]]  # by member and segment

    def words(self, segment: str, index: int) -> dict[str, bytes]:
        return {member: self.masked[member][segment][index] for member in self.survivors.ids}

    def evidence(self, segment: str, index: int) -> FalseSum:
        return FalseSum(
            confirmed=self.confirmed,
            result=self.result,
            shown=self.shown,
            segment=segment,
            index=index,
            words=self.words(segment, index),
        )


def chunks_of(words: ring.Words, segment: SegmentSpec, chunk: int) -> list[bytes]:
    count = -(-segment.coordinates // chunk)
    spans = (chunk_span(segment, chunk, index) for index in range(count))
    return [ring.pack(words[start : start + size].copy(), segment.bits) for start, size in spans]


def published(
    members: int = 5,
    drops: Mapping[str, str] | None = None,
    moved: tuple[int, ...] = (),
    sums: tuple[int, ...] = (),
    signed: SigningKey = SERVER,
    **changes: object,
) -> Published:
    """A published sum: words ``moved`` by one step, other ``sums``, or other ``changes`` of the part's result."""
    roster = make_roster(members)
    spec = make_spec(roster, Method.FULL, bits=8, coordinates=COORDINATES, chunk_coordinates=CHUNK)
    plan = session_plan(spec, roster, "full")
    session = Session(roster, plan, make_participants(roster, plan), drops=dict(drops or {}))
    outcome = session.run()
    survivors: SurvivorSet = session.seen["survivors"]
    values, weights = plan.segments
    opened = outcome.opened[values.name].copy()
    for place in moved:
        opened[place] += np.uint8(1)
    digests = [hashlib.sha256(packed).digest() for packed in chunks_of(opened, values, CHUNK)]
    cohort = survivors.sharing.cohort
    part = PartResult(
        part="full",
        opened=True,
        session_id=cohort.session_id,
        hu3=survivors.hu3,
        cohort=cohort.ids,
        survivors=survivors.ids,
        sums=sums or tuple(int(word) for word in outcome.opened[weights.name]),
        opened_digest=segment_digest(values, CHUNK, digests),
        norm=1.0,
    )
    part = replace(part, **changes)  # type: ignore[arg-type]
    result = RoundResult.of(spec, (part,), b"\x09" * 32)
    masked = {member: session.seen["uploads"][member] for member in survivors.ids}
    uploads = {
        member: {name: tuple(hashlib.sha256(one).digest() for one in chunks) for name, chunks in segments.items()}
        for member, segments in masked.items()
    }
    session.spec = spec
    confirmed = confirmed_sum(session, "full")
    shown = ShownSum(unmasks=tuple(session.seen["unmasks"]), uploads=uploads, opened=tuple(digests))
    return Published(confirmed, shown, sign_result(result, signed), part, survivors, masked)


def confirmed_sum(session: Session, name: str) -> ConfirmedSum:
    """What each survivor of a session that ran keeps of it; ``session.spec`` is the specification."""
    survivors: SurvivorSet = session.seen["survivors"]
    return ConfirmedSum(
        roster=sign_roster(session.roster, ROOT),
        spec=sign_spec(session.spec, SERVER),
        session=name,
        joins=survivors.sharing.cohort.joins,
        deals=survivors.sharing.deals,
        survivors=survivors.message.survivors,
        confirmations=tuple(session.seen["confirmations"]),
    )
