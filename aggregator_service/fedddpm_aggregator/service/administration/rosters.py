"""The federation's keys and rosters, and how a running round reacts to a newer roster."""

from __future__ import annotations

import time

from sqlalchemy import Connection, inspect, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import AttemptRow, Base, FederationRow, RosterRow, RunRow
from fedddpm_aggregator.errors import OlderInForceError, OperatorError, UnavailableError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import close_attempt, start_attempt
from fedddpm_aggregator.service.rounds.chartered import lineage_of
from fedddpm_aggregator.service.rounds.phases import fail
from fedddpm_aggregator.service.rounds.sessions import cohort_of, live_of
from fedddpm_aggregator.vectors.model_files import model_blob
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.errors import OlderRosterError, ProtocolError
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.phases import Phase

_FEDERATION = Base.metadata.tables[FederationRow.__tablename__]
_ROOT = _FEDERATION.c.root_public_key
_BEFORE_UNMASK = (Phase.SHARES, Phase.MASKED, Phase.CONFIRM)


def initialise(ctx: Context, root_public_key: bytes | None) -> bytes | None:
    """Create the federation's row; pin the root key. The pinned key; OperatorError when another one is pinned."""
    with ctx.transaction() as db:
        # Two processes at once: one creates the row, the other waits for its transaction and finds the row.
        created = insert_once(db, FederationRow, id=1, root_public_key=root_public_key, version=1)
        row = db.get_one(FederationRow, 1, with_for_update=True)
        news = created
        if root_public_key is not None and row.root_public_key is None:
            row.root_public_key, news = root_public_key, True
        if root_public_key is not None and row.root_public_key is not None:
            _require_pinned(row.root_public_key, root_public_key)
        if news:
            _record_init(ctx, db, root_public_key)
        return row.root_public_key


def require_root(connection: Connection, root_public_key: bytes) -> None:
    """OperatorError when another root key is pinned in a database of any release; none may be pinned yet."""
    tables = inspect(connection)
    if not tables.has_table(_FEDERATION.name):
        return
    if _ROOT.name not in [column["name"] for column in tables.get_columns(_FEDERATION.name)]:
        return  # a release to come keeps it elsewhere
    pinned = connection.scalar(select(_ROOT))
    if pinned is not None:
        _require_pinned(pinned, root_public_key)


def _require_pinned(pinned: bytes, wanted: bytes) -> None:
    if pinned != wanted:
        raise OperatorError(
            f"the root key with the fingerprint {fingerprint(pinned)} is pinned in this database, not "
            f"{fingerprint(wanted)}; a federation never changes its root key: check which of the two is yours"
        )


def _record_init(ctx: Context, db: Session, root_public_key: bytes | None) -> None:
    pinned = root_public_key.hex() if root_public_key is not None else ""
    audit.record(ctx, db, audit.LOCAL, "init", server_key=ctx.key.public_key.hex(), root_key=pinned)


def next_step(ctx: Context) -> str | None:
    """What the coordinator and operator have left to do before rounds can begin; None if a run is open."""
    with ctx.database.read() as db:
        return next_step_in(db)


def next_step_in(db: Session) -> str | None:
    """As :func:`next_step`, at the moment that ``db`` sees."""
    row = queries.federation(db)
    if row is None or row.root_public_key is None:
        return "no root key is pinned yet; next: fedddpm-aggregator init --data DIR --root-key PUBHEX"
    if queries.newest_roster_version(db) == 0:
        return "no roster is in force yet; next: fedddpm-aggregator federation install roster.json --data DIR"
    if not queries.open_runs(db):
        return (
            "no run is open; next: the root signs one (fedddpm-aggregator federation sign-run), then: "
            "federation install CHARTER --data DIR --initial-model FILE"
        )
    return None


def require_its_blobs(ctx: Context) -> None:
    """OperatorError unless the blob store is the one of this database: what every open run goes on from is in it.

    A replica with a store of its own would lose what it is sent, and find what others were sent damaged.
    """
    with ctx.database.read() as db:
        newest = [(run, queries.last_result(db, run.id)) for run in queries.open_runs(db)]
    for run, result in newest:
        averaged = lineage_of(run).averaged_hash.hex()
        for model in (run.first_base if result is None else result.model, *([averaged] if averaged else [])):
            if not ctx.blobs.exists(model_blob(model)):
                raise OperatorError(
                    f"the blobs in {ctx.blobs.url} do not belong to this database: model {model} of run {run.name!r} is"
                    " not there. Let --blobs name the store that the other replicas use, or restore it from its backup"
                )


def install_roster(ctx: Context, document: SignedDocument, actor: str = audit.LOCAL) -> Roster:
    """Verify a signed roster against the pinned root key and put it in force; the same again is fine."""
    return put_in_force(ctx, document, actor)[0]


def put_in_force(ctx: Context, document: SignedDocument, actor: str = audit.LOCAL) -> tuple[Roster, bool]:
    """As :func:`install_roster`, and whether this call did it: the same roster may have been in force already."""
    with ctx.transaction() as db:
        row = queries.federation(db, lock=True)
        if row is None or row.root_public_key is None:
            raise OperatorError("no root key is pinned; run: fedddpm-aggregator init --data DIR --root-key PUBHEX")
        newest = queries.newest_roster_version(db)
        try:
            roster = open_roster(document, row.root_public_key, newest)
        except OlderRosterError as error:
            raise OlderInForceError(f"{error}; rosters never go back") from error
        except ProtocolError as error:
            raise OperatorError(f"the roster is not signed by the pinned root key or not valid: {error}") from error
        if roster.server_public_key != ctx.key.public_key:
            raise OperatorError(
                "the roster names another aggregator key; create it with "
                f"--server-key {ctx.key.public_key.hex()}, so that institutions accept this server's rounds"
            )
        if newest and roster.version == newest:
            if db.get_one(RosterRow, newest).body != document.body:
                raise OperatorError(f"another roster of version {newest} is in force; sign the next version")
            return roster, False
        _require_same_federation(ctx, db, newest, roster)
        values = {"body": document.body, "signature": document.signature}
        db.add(RosterRow(version=roster.version, installed_at=time.time(), **values))
        db.flush()
        queries.bump_version(db)
        audit.record(ctx, db, actor, "roster installed", version=roster.version, hash=roster.hash.hex())
        return roster, True


def newest_roster_document(ctx: Context) -> SignedDocument:
    """The newest roster as the root signed it; UnavailableError before the first."""
    with ctx.database.read() as db:
        row = db.get(RosterRow, queries.newest_roster_version(db))
        if row is None:
            raise UnavailableError("no roster is installed yet; the coordinator must install the root-signed roster")
        return SignedDocument(body=row.body, signature=row.signature)


def react_to_roster(ctx: Context, db: Session, run: RunRow, attempt: AttemptRow | None) -> None:
    """Let a newer roster take effect; the caller holds the attempt's lock.

    A stalled run goes on. An attempt that still waits for JOINs starts anew, which costs nobody anything; that of a
    paused run when it is resumed. A session with a closed cohort that has not come to UNMASK fails if the roster
    removes a member of it or raises c_max.
    """
    newest = ctx.newest_roster(db)
    if run.status == "stalled" and newest.version > (run.stalled_roster or 0):
        run.status, run.reason, run.stalled_roster = "running", None, None
        start_attempt(ctx, db, run)
        return
    if attempt is None or attempt.status != "active" or newest.version <= attempt.roster_version:
        return
    sessions = queries.sessions_of(db, attempt.id)
    if all(Phase(row.phase) is Phase.JOIN for row in sessions):
        if run.status == "paused":
            return
        close_attempt(ctx, db, attempt, f"roster version {newest.version} is in force")
        start_attempt(ctx, db, run)
        return
    for row in sessions:
        live = live_of(ctx, db, attempt, row)
        if live.phase in _BEFORE_UNMASK and live.roster.tightens_against(newest, cohort_of(db, live).ids):
            fail(ctx, db, live, f"roster version {newest.version} removes a member of the cohort or raises c_max")


def _require_same_federation(ctx: Context, db: Session, newest: int, roster: Roster) -> None:
    if newest and ctx.roster(db, newest).federation != roster.federation:
        raise OperatorError(f"this data directory belongs to federation {ctx.roster(db, newest).federation!r}")
