"""Whether a stored session is what its members signed: JOINs, sets, uploads, confirmations, answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import ChunkRow, JoinRow, MessageRow, ShareRow
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.sessions import LiveSession, join_message
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.encoding.encoder import weight_units
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.cohort import Sharing, SurvivorSet, open_cohort, verify_join
from fedddpm_protocol.session.verdicts import verify_evidence
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import Confirmation, Deal, Unmask, UploadManifest
from fedddpm_protocol.wire.phases import Phase


@dataclass(frozen=True)
class _Stored:
    """All messages of a session."""

    joins: Sequence[JoinRow]
    shares: Sequence[ShareRow]
    messages: dict[str, Sequence[MessageRow]]


def verify_session(ctx: Context, db: Session, live: LiveSession, counts: Counter[str]) -> PartResult | None:
    """Check every stored message of a session and its result; returns the result, None if there is none.

    ``counts`` grows by what was checked. HistoryError names the first thing that does not hold.
    """
    what = "the joins"
    try:
        stored = _read(db, live.session.id)
        cohort = [row for row in stored.joins if row.in_cohort]
        for row in stored.joins:
            what = f"the JOIN of {row.member!r}"
            body = verify_join(live.plan, live.roster, join_message(row))
            _require((body.id, body.seq) == (row.member, row.seq), f"{what} is stored under another name or number")
        counts["joins"] += len(stored.joins)
        what = "the cohort"
        if not cohort:
            _require(not any(stored.messages.values()), "messages are stored, but no cohort")
            _require_no_result(live)
            return None
        members = open_cohort(live.plan, live.roster, [join_message(row) for row in cohort])
        deals = {}
        for message_row in stored.messages[queries.SHARES]:
            what = f"the deal of {message_row.member!r}"
            deals[message_row.member] = Deal.model_validate_json(message_row.body)
            dealt = members.verify_deal(deals[message_row.member])
            _require(dealt.dealer == message_row.member, "it is stored under another name")
            named = {line.recipient: line.sealed for line in dealt.lines}
            for item in (item for item in stored.shares if item.sender == dealt.dealer):
                what = f"a share of {item.sender!r}"
                _require(hashlib.sha256(item.sealed).digest() == named[item.recipient], "its deal names another one")
        counts["sealed shares"] += len(stored.shares)
        if not stored.messages[queries.UPLOAD]:
            _require_no_result(live)
            return None
        what = "the set of sharers"
        sharing = members.sharing(deals.values())
        digests = {}
        for message_row in stored.messages[queries.UPLOAD]:
            what = f"the upload of {message_row.member!r}"
            digests[message_row.member] = _verify_upload(db, live, sharing, message_row)
        counts["uploads"] += len(digests)
        if not stored.messages[queries.CONFIRMATION]:
            _require_no_result(live)
            return None
        what = "the set of survivors"
        survivors = sharing.survivors(digests)
        for step in (queries.CONFIRMATION, queries.UNMASK):
            for message_row in stored.messages[step]:
                what = f"the {step} of {message_row.member!r}"
                _verify_answer(survivors, step, message_row)
            counts[f"{step}s"] += len(stored.messages[step])
        what = "the result"
        return _verify_result(ctx, live, survivors, stored)
    except (ProtocolError, ValueError) as error:
        raise HistoryError(f"{what} does not hold: {error}") from error


def verify_verdicts(db: Session, live: LiveSession, counts: Counter[str]) -> None:
    """Check the evidence of every verdict in a session: it must say what is stored. HistoryError if it does not."""
    for row in blame.verdicts_in(db, live.session.id):
        if row.evidence is None:
            continue
        try:
            evidence = Evidence.model_validate_json(row.evidence)
            found = verify_evidence(live.roster, evidence).verdict
            _require(evidence.sha256 == row.sha256, "it is stored under another name")
            _require((found.member, found.offence) == (row.member, row.offence), "it convicts somebody else")
        except (ProtocolError, ValueError) as error:
            raise HistoryError(f"the evidence against {row.member!r} does not hold: {error}") from error
        counts["verdicts"] += 1


def _read(db: Session, session_id: int) -> _Stored:
    """Later steps first: while a round goes on, a step that is seen has all of the earlier ones before it."""
    steps = (queries.UNMASK, queries.CONFIRMATION, queries.UPLOAD, queries.SHARES)
    messages = {step: queries.messages_of(db, session_id, step) for step in steps}
    shares = db.scalars(select(ShareRow).where(ShareRow.session_id == session_id)).all()
    return _Stored(queries.joins_of(db, session_id), shares, messages)


def _verify_upload(db: Session, live: LiveSession, sharing: Sharing, row: MessageRow) -> bytes:
    _verify_body(row)
    manifest = UploadManifest.model_validate_json(row.body)
    digest = sharing.verify_manifest(row.member, manifest)
    _require(digest == row.upload_digest, "its digest is not that of its chunks")
    mine = (ChunkRow.session_id == row.session_id, ChunkRow.member == row.member)
    chunks = {
        (chunk.segment, chunk.index): chunk.sha256
        for chunk in db.scalars(select(ChunkRow).where(*mine))
        if chunk.sha256
    }
    for segment, hashes in manifest.chunks.items():
        for index, sha256 in enumerate(hashes):
            _require(chunks.get((segment, index)) == sha256.hex(), f"chunk {index} of {segment!r} is another one")
    return digest


def _verify_answer(survivors: SurvivorSet, step: str, row: MessageRow) -> None:
    _verify_body(row)
    if step == queries.CONFIRMATION:
        confirmation = Confirmation.model_validate_json(row.body)
        _require(confirmation.id == row.member, "it is stored under another name")
        survivors.verify_confirmation(confirmation)
    else:
        unmask = Unmask.model_validate_json(row.body)
        _require(unmask.id == row.member, "it is stored under another name")
        survivors.verify_unmask(unmask)


def _verify_body(row: MessageRow) -> None:
    _require(hashlib.sha256(row.body.encode()).hexdigest() == row.sha256, "it is not the message that was accepted")


def _require_no_result(live: LiveSession) -> None:
    _require(live.session.result is None, "there is a result, but not the messages that it follows from")


def _verify_result(ctx: Context, live: LiveSession, survivors: SurvivorSet, stored: _Stored) -> PartResult | None:
    if live.session.result is None:
        _require(live.phase is not Phase.DONE, "the session is over and has no result")
        return None
    result = canonical.decode(PartResult, live.session.result)
    cohort = survivors.sharing.cohort
    claimed = (result.part, result.session_id, result.hu3, result.cohort, result.survivors)
    follows = (live.session.part, cohort.session_id, survivors.hu3, cohort.ids, survivors.ids)
    _require(claimed == follows, "it does not follow from the messages of the session")
    _require(result.opened_digest.hex() == live.session.opened_digest, "it names another opened sum")
    for step in (queries.CONFIRMATION, queries.UNMASK):
        _require(survivors.enough(len(stored.messages[step])), f"too few members sent a {step}")
    spec = ctx.spec_of(live.attempt)
    if spec.weighting == "disclosed":
        manifests = {
            row.member: UploadManifest.model_validate_json(row.body) for row in stored.messages[queries.UPLOAD]
        }
        weights = sum(weight_units(manifests[member].samples or 0, spec) for member in survivors.ids)
        _require(weights == result.sums[0], "its weight is not that of the disclosed sample counts")
    return result


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
