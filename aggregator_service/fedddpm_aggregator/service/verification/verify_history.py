"""Whether the whole history is what was signed and summed: everything that can be recomputed is.

Nothing is taken from the database but what hashes, signatures and sums bear out. The chain begins with the root key
that is pinned, and with the server's key. Memory holds a few models of one run, however long the history.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, ModelRow, ResultRow, RosterRow, RunRow
from fedddpm_aggregator.errors import AuditError, HistoryError
from fedddpm_aggregator.service.audit import all_entries, verify_chain
from fedddpm_aggregator.service.context import Context, decode_roster, decode_spec
from fedddpm_aggregator.service.rounds.chartered import charter_of
from fedddpm_aggregator.service.rounds.sessions import LiveSession
from fedddpm_aggregator.service.verification.verify_charters import verify_charter, verify_follows
from fedddpm_aggregator.service.verification.verify_rounds import Chain, verify_derivation, verify_model, verify_result
from fedddpm_aggregator.service.verification.verify_sessions import verify_session, verify_verdicts
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.documents import version_of
from fedddpm_protocol.agreement.lineage import NO_RESULTS
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import Manifest, Vector
from fedddpm_protocol.agreement.model_metadata import manifests_of
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.shards import sessions_of
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.canonical import PROTOCOL
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.phases import Phase

Step = Callable[[str], None]  # is told what is looked at, once for every attempt


def attempts_in(ctx: Context) -> int:
    """How many attempts :func:`verify_history` will look at."""
    with ctx.database.read() as db:
        return db.scalar(select(func.count()).select_from(AttemptRow)) or 0


def verify_history(ctx: Context, root: bytes | None = None, step: Step = lambda _: None) -> Counter[str]:
    """Recompute all hashes, signatures, sets and models; how many of each kind were checked.

    Args:
        root: the root key that must be pinned; whichever is, by default.

    Raises:
        HistoryError: names the first thing that does not hold.
    """
    counts: Counter[str] = Counter()
    rosters = _verify_rosters(ctx, root, counts)
    with ctx.database.read() as db:
        runs = db.scalars(select(RunRow).order_by(RunRow.id)).all()
    for run in runs:
        version = _version_of(ctx, run)
        if version != PROTOCOL:
            counts[f"runs under {version}, not followed by this release"] += 1
            continue
        _Run(ctx, run, rosters, counts, step, lambda: _verify_rosters(ctx, root, counts)).verify()
    try:
        with ctx.database.read() as db:
            counts["audit entries"] = verify_chain(db, ctx.key.public_key).seq
            _verify_told(db)
    except AuditError as error:
        raise HistoryError(str(error)) from error
    return counts


def _version_of(ctx: Context, run: RunRow) -> str:
    """The version of the protocol that a run was made under; this one's for a run without an attempt."""
    with ctx.database.read() as db:
        first = select(AttemptRow.spec).where(AttemptRow.run_id == run.id).order_by(AttemptRow.id).limit(1)
        spec = db.scalar(first)
    return PROTOCOL if spec is None else version_of(spec) or PROTOCOL


def _verify_told(db: Session) -> None:
    """What the audit log tells of is there: rows cut off a history's end break no chain of their own."""
    for entry in all_entries(db):
        if not _is_there(db, entry.action, json.loads(entry.details)):
            raise HistoryError(f"audit entry {entry.seq} tells of what is not there: {entry.action} {entry.details}")


def _is_there(db: Session, action: str, told: dict[str, Any]) -> bool:
    if action == "roster installed":
        roster = db.get(RosterRow, told["version"])
        return roster is not None and decode_roster(roster.body).hash.hex() == told["hash"]
    if action == "init":
        federation = queries.federation(db)
        pinned = federation.root_public_key if federation is not None else None
        return told["root_key"] in ("", (pinned or b"").hex())
    if action not in ("run started", "attempt started", "round published"):
        return True
    run = db.scalar(select(RunRow).where(RunRow.name == told["run"]))
    if run is None or action == "run started":
        return run is not None and _is_the_run_told_of(run, told)
    if action == "round published":
        result = db.get(ResultRow, (run.id, told["round"]))
        return result is not None and result.hash == told["hash"]
    mine = (AttemptRow.run_id == run.id, AttemptRow.round == told["round"], AttemptRow.attempt == told["attempt"])
    return db.scalar(select(AttemptRow.id).where(*mine)) is not None


def _is_the_run_told_of(run: RunRow, told: dict[str, Any]) -> bool:
    charter = charter_of(run)
    stored = {} if charter is None else {"charter": charter.hash.hex(), "number": charter.number}
    return told == {"run": run.name, "initial_model": run.initial_model, **stored}


def _verify_rosters(ctx: Context, root: bytes | None, counts: Counter[str]) -> dict[int, Roster]:
    with ctx.database.read() as db:
        federation = queries.federation(db)
        rows = db.scalars(select(RosterRow).order_by(RosterRow.version)).all()
    pinned = federation.root_public_key if federation is not None else None
    if root is not None and pinned != root:
        raise HistoryError("the root key that is pinned here is not the given one")
    rosters: dict[int, Roster] = {}
    for row in rows:
        with _place(f"roster {row.version}"):
            if pinned is None:
                raise HistoryError("it is installed, but no root key is pinned")
            roster = open_roster(SignedDocument(body=row.body, signature=row.signature), pinned)
            known = (roster.version, roster.server_public_key, roster.federation)
            federation_name = next(iter(rosters.values()), roster).federation
            if known != (row.version, ctx.key.public_key, federation_name):
                raise HistoryError("it has another version, federation or server key than it should")
        rosters[row.version] = roster
    counts["rosters"] = len(rosters)
    return rosters


class _Run:
    """One run, from its first model on."""

    def __init__(
        self,
        ctx: Context,
        run: RunRow,
        rosters: dict[int, Roster],
        counts: Counter[str],
        step: Step,
        read_rosters: Callable[[], dict[int, Roster]],
    ) -> None:
        self._ctx, self._run, self._rosters, self._counts, self._step = ctx, run, rosters, counts, step
        self._read_rosters = read_rosters
        self._chain, self._lineage = Chain(run.first_base), NO_RESULTS
        self._charter: Charter | None = None

    def verify(self) -> None:
        name = f"run {self._run.name!r}"
        with _place(name):
            federation = next((roster.federation for roster in self._rosters.values()), "")
            self._charter = verify_charter(self._ctx, self._run, federation, self._counts)
            self._verify_first_models()
        with self._ctx.database.read() as db:  # results first: while rounds go on, each has its attempt in the list
            results = db.scalar(select(func.count()).where(ResultRow.run_id == self._run.id)) or 0
            mine = select(AttemptRow.id).where(AttemptRow.run_id == self._run.id).order_by(AttemptRow.id)
            attempts = db.scalars(mine).all()
        number = 0  # of the next attempt at the chain's round
        for attempt_id in attempts:
            before = self._chain.round
            self._verify_twice(attempt_id, number)
            number = number + 1 if self._chain.round == before else 0
        if results > self._chain.round:
            raise HistoryError(f"{name}: it has {results} results, but finished attempts for {self._chain.round}")
        self._counts["runs"] += 1

    def _verify_twice(self, attempt_id: int, number: int) -> None:
        """Look again, later, at what does not hold: a server beside us may just have removed old blobs, or have begun
        an attempt under a roster that is newer than those that were read."""
        counts = self._counts.copy()
        try:
            self._verify_now(attempt_id, number, self._step)
        except HistoryError:
            self._counts.clear()
            self._counts.update(counts)
            self._rosters.update(self._read_rosters())
            self._verify_now(attempt_id, number, lambda _: None)

    def _verify_now(self, attempt_id: int, number: int, step: Step) -> None:
        """The attempt with this number at the chain's round, as the database is now."""
        with self._ctx.database.read() as db:
            attempt = queries.attempt_by_id(db, attempt_id)
            place = f"run {self._run.name!r}, round {attempt.round + 1}, attempt {attempt.attempt + 1}"
            step(place)
            with _place(place):
                if (attempt.round, attempt.attempt) != (self._chain.round, number):
                    raise HistoryError("it does not follow the attempt before it")
                self._verify_attempt(db, attempt)

    def _verify_first_models(self) -> None:
        whole, shared = self._manifest(MODEL_PARTS), self._manifest(Method(self._run.method).shared_parts)
        theta_0 = verify_model(self._ctx.blobs, self._run.initial_model, whole, False, self._counts)
        base = verify_model(self._ctx.blobs, self._run.first_base, shared, False, self._counts)
        if theta_0 is None or base is None or not np.array_equal(base, self._shared_of(theta_0)):
            raise HistoryError("its first base model is not the shared part of theta_0")
        self._chain.vector = base

    def _manifest(self, parts: tuple[str, ...]) -> Manifest:
        manifests = manifests_of(self._run.manifest)
        return tuple(tensor for part, manifest in manifests.items() if part in parts for tensor in manifest)

    def _shared_of(self, theta_0: Vector) -> Vector:
        pieces, start, parts = [], 0, Method(self._run.method).shared_parts
        for part, manifest in manifests_of(self._run.manifest).items():
            end = start + sum(tensor.size for tensor in manifest)
            if part in parts:
                pieces.append(theta_0[start:end])
            start = end
        return np.concatenate(pieces)

    def _verify_attempt(self, db: Session, attempt: AttemptRow) -> None:
        roster = self._rosters.get(attempt.roster_version)
        if roster is None:
            raise HistoryError(f"its roster {attempt.roster_version} is missing")
        result = db.get(ResultRow, (self._run.id, attempt.round)) if attempt.status == "done" else None
        if attempt.status == "done" and result is None:
            raise HistoryError("it is finished, but its result is missing")
        spec = self._verify_spec(attempt, roster)
        rows = {row.part: row for row in queries.sessions_of(db, attempt.id)}
        if tuple(rows) != sessions_of(Method(spec.method), roster, spec.turn):
            raise HistoryError("its sessions are not those of its method and roster")
        parts, claimed = [], _claimed_spoiled(result)
        for name, row in rows.items():
            with _place(f"session {name!r}"):
                live = LiveSession(attempt, row, session_plan(spec, roster, name), roster)
                verify_verdicts(db, live, self._counts)
                opened = verify_session(self._ctx, db, live, self._counts)
                spoiled = name in claimed and _came_out(db, live)
                parts.append(opened or PartResult.not_opened(name, spoiled=spoiled))
        self._counts["attempts"] += 1
        self._counts["sessions"] += len(rows)
        if result is not None:
            self._verify_round(db, result, roster, spec, tuple(parts))

    def _verify_spec(self, attempt: AttemptRow, roster: Roster) -> RoundSpec:
        keys.verify(roster.server_public_key, "spec", attempt.spec, attempt.signature, "aggregator")
        spec, run, chain = decode_spec(attempt.spec), self._run, self._chain
        claimed = (spec.run, spec.round, spec.attempt, spec.method, spec.roster_version, spec.roster_hash)
        stored = (run.name, attempt.round, attempt.attempt, run.method, roster.version, roster.hash)
        models = (spec.initial_model_hash.hex(), spec.base_model_hash.hex(), spec.previous_result)
        if spec.hash.hex() != attempt.spec_hash or claimed != stored:
            raise HistoryError("its specification is not the one that it is stored with")
        if models != (run.initial_model, chain.base, chain.previous):
            raise HistoryError("its specification does not build on the result before it")
        if spec.base_manifest != self._manifest(Method(run.method).shared_parts):
            raise HistoryError("its specification is over other tensors than the run")
        verify_follows(spec, run, self._charter, self._lineage, roster)
        return spec

    def _verify_round(
        self, db: Session, row: ResultRow, roster: Roster, spec: RoundSpec, parts: tuple[PartResult, ...]
    ) -> None:
        result = verify_result(row, roster, spec, parts, self._chain)
        blobs, counts = self._ctx.blobs, self._counts
        verify_derivation(blobs, spec, result, self._chain, row.removed_at is not None, counts)
        vector = self._verify_model(db, row.model, spec)
        averaged = None
        if result.averaged_hash:
            averaged = self._verify_model(db, result.averaged_hash.hex(), spec)
        self._chain = Chain(row.model, result.hash, result.round + 1, vector, averaged)
        self._lineage = self._lineage.after(result)
        counts["results"] += 1

    def _verify_model(self, db: Session, model: str, spec: RoundSpec) -> Vector | None:
        row = db.get(ModelRow, model)
        removed = row is not None and row.removed_at is not None
        return verify_model(self._ctx.blobs, model, spec.base_manifest, removed, self._counts)


def _claimed_spoiled(row: ResultRow | None) -> frozenset[str]:
    """The sums that a signed result calls spoiled, which no opened values could show."""
    if row is None:
        return frozenset()
    result = canonical.decode(RoundResult, row.body)
    return frozenset(part.part for part in result.parts if part.spoiled)


def _came_out(db: Session, live: LiveSession) -> bool:
    """Whether as many members answered for a sum that failed as open it: no other sum can have been spoiled."""
    answers = len(queries.members_of(db, live.session.id, queries.UNMASK))
    cohort = queries.cohort_size(db, live.session.id)
    return live.phase is Phase.FAILED and bool(cohort) and answers >= live.roster.threshold(cohort)


@contextlib.contextmanager
def _place(place: str) -> Iterator[None]:
    """Say of an error where in the history it is."""
    try:
        yield
    except (HistoryError, ProtocolError) as error:
        raise HistoryError(f"{place}: {error}") from error
