"""The process's handles, which every use case works with: database, blobs, signing key, reducer, metrics."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy.orm import Session

from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.db.nonces import NonceBook
from fedddpm_aggregator.db.schema_gate import SchemaGate
from fedddpm_aggregator.db.tables import AttemptRow, RosterRow
from fedddpm_aggregator.errors import UnavailableError
from fedddpm_aggregator.reduction.threads import Reducer, ThreadReducer
from fedddpm_aggregator.telemetry.counters import Metrics
from fedddpm_aggregator.telemetry.pulse import Pulse
from fedddpm_aggregator.telemetry.tracer import NoTracer, Tracer
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import SessionPlan, session_plan
from fedddpm_protocol.wire.api import SIGNATURE_MAX_AGE_S

MIB = 2**20
REPLICAS_DIFFER_S = 120  # how far the clocks of two replicas may be apart without forgetting a nonce too early
MOST_PLANS = 256  # kept in memory


@dataclass(frozen=True)
class Limits:
    """Numbers that the use cases need from the settings."""

    max_chunk_bytes: int = 4 * MIB
    signature_max_age_s: int = SIGNATURE_MAX_AGE_S
    signature_max_ahead_s: int = 60
    lease_s: float = 3.0
    unmask_grace_s: float = 1.0
    max_model_bytes: int = 1024 * MIB
    keep_rounds: int = 0  # of a run, whose vectors are kept; 0: all
    keep_uploads_s: float = 86_400.0  # after the last round of a run, for its sum to be checked; 0: none are ever kept

    @property
    def nonce_kept_s(self) -> int:
        """How long a nonce is remembered, from its request on."""
        return self.signature_max_age_s + 2 * self.signature_max_ahead_s + REPLICAS_DIFFER_S


@dataclass
class Context:
    """One process's hold on a federation: database, blobs, the signing key."""

    database: Database
    blobs: Blobs
    key: SigningKey
    limits: Limits = field(default_factory=Limits)
    on_change: Callable[[], None] = lambda: None  # institutions have something new to see
    on_work: Callable[[int], None] = lambda _attempt: None  # an attempt has something to open or publish
    reducer: Reducer = field(default_factory=ThreadReducer)
    metrics: Metrics = field(default_factory=Metrics)
    pulse: Pulse = field(default_factory=Pulse)
    tracer: Tracer = field(default_factory=NoTracer)
    nonces: NonceBook = field(init=False)
    schema: SchemaGate = field(init=False)
    _newest: Roster | None = None  # the newest roster that was seen; who relies on it asks for its version again
    _rosters: dict[int, Roster] = field(default_factory=dict)  # a version in force never changes
    _plans: dict[tuple[str, str], SessionPlan] = field(default_factory=dict)  # nor does the plan of a session
    holder: str = field(default_factory=lambda: secrets.token_hex(8))  # name of this process in leases

    def __post_init__(self) -> None:
        self.nonces = NonceBook(self.database)
        self.schema = SchemaGate(self.database.reading_engine)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A durable transaction.

        After the commit, waiting institutions are told if something changed for them, work that became possible is
        announced, and a refusal left by :func:`fedddpm_aggregator.db.queries.refuse` is raised.
        """
        with self.database.write() as db:
            yield db
        if db.info.get(queries.CHANGED):
            self.on_change()
        for attempt_id in db.info.get(queries.WORK, ()):
            self.on_work(attempt_id)
        refusal = db.info.get(queries.REFUSAL)
        if refusal is not None:
            raise refusal

    def roster(self, db: Session, version: int) -> Roster:
        """An installed roster (already verified when it was installed)."""
        known = self._rosters.get(version)
        if known is not None:
            return known
        row = db.get(RosterRow, version)
        if row is None:
            raise UnavailableError("no roster is installed yet; the coordinator must install the root-signed roster")
        return self._rosters.setdefault(version, decode_roster(row.body))

    def newest_roster(self, db: Session) -> Roster:
        """The newest roster at the moment that ``db`` sees; UnavailableError before the first."""
        roster = self.roster(db, queries.newest_roster_version(db))
        if self._newest is None or roster.version > self._newest.version:
            self._newest = roster
        return roster

    def known_roster(self) -> Roster | None:
        """The newest roster that this process has seen, without asking the database; None before the first."""
        return self._newest

    def spec_of(self, attempt: AttemptRow) -> RoundSpec:
        """The attempt's specification."""
        return decode_spec(attempt.spec)

    def plan_of(self, db: Session, attempt: AttemptRow, part: str) -> SessionPlan:
        """The plan of one session; SpecError if the round has no such part."""
        known = self._plans.get((attempt.spec_hash, part))
        if known is None:
            known = session_plan(self.spec_of(attempt), self.roster(db, attempt.roster_version), part)
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[attempt.spec_hash, part] = known
        return known


@lru_cache(maxsize=32)
def decode_roster(body: bytes) -> Roster:
    """Cached decode; the record is frozen."""
    return canonical.decode(Roster, body)


@lru_cache(maxsize=32)
def decode_spec(body: bytes) -> RoundSpec:
    """Cached decode; the record is frozen."""
    return canonical.decode(RoundSpec, body)
