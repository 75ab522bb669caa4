"""Everything the aggregator remembers, except vectors: those are blobs in the data directory.

Byte columns with canonical records (rosters, specs, joins, results) hold exactly what was signed.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAME = String(64)
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)


class FederationRow(Base):
    """The one federation of this database (id is always 1)."""

    __tablename__ = "federation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    root_public_key: Mapped[bytes | None] = mapped_column(LargeBinary, comment="pinned at init; signs rosters")
    version: Mapped[int] = mapped_column(BigInteger, comment="grows with every change that institutions must see")


class RosterRow(Base):
    """A roster as the root signed it."""

    __tablename__ = "rosters"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    body: Mapped[bytes] = mapped_column(LargeBinary, comment="canonical roster")
    signature: Mapped[bytes] = mapped_column(LargeBinary, comment="of the federation's root key")
    installed_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")


class ModelRow(Base):
    """A published model: theta_0, or the shared parts after a round."""

    __tablename__ = "models"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True, comment="hex of the hash over manifest and values")
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes of the safetensors file")
    created_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")
    removed_at: Mapped[float | None] = mapped_column(Float, comment="Unix seconds; its vectors are kept no longer")


class RunRow(Base):
    """One training of one network: its charter, of which many columns are a copy for tables, and where it stands."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    method: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16), comment="running, stalled, paused, finished or ended")
    reason: Mapped[str | None] = mapped_column(Text, comment="why it is stalled, and what the root can do")
    stalled_roster: Mapped[int | None] = mapped_column(Integer, comment="only a newer roster than this goes on")
    architecture: Mapped[bytes] = mapped_column(LargeBinary, comment="canonical architecture record")
    manifest: Mapped[str] = mapped_column(Text, comment="JSON {part: [[tensor, shape], ...]} of the whole network")
    initial_model: Mapped[str] = mapped_column(ForeignKey("models.hash"), comment="theta_0")
    first_base: Mapped[str] = mapped_column(ForeignKey("models.hash"), comment="shared parts of theta_0")
    rounds: Mapped[int] = mapped_column(Integer)
    weighting: Mapped[str] = mapped_column(String(16), comment="hidden, equal or disclosed")
    weight_cap: Mapped[int] = mapped_column(BigInteger, comment="samples that count as a full weight")
    clip_norm: Mapped[float] = mapped_column(Float, comment="largest L2 norm of one update")
    clip: Mapped[str] = mapped_column(String(16), comment="adaptive: later rounds' follows the last mean; or fixed")
    min_cohort: Mapped[int] = mapped_column(Integer, comment="joins to wait for, at least the roster's n_min")
    chunk_coordinates: Mapped[int] = mapped_column(Integer)
    bits: Mapped[int] = mapped_column(Integer, comment="ring of the values")
    first_bits: Mapped[int] = mapped_column(Integer, comment="ring where nothing is known of their size")
    initial_seed: Mapped[str] = mapped_column(String(64), comment="hex; theta_0 follows from it; empty: it does not")
    epochs: Mapped[int] = mapped_column(Integer)
    max_steps: Mapped[int] = mapped_column(Integer, comment="0: no limit")
    batch_size: Mapped[int] = mapped_column(Integer)
    learning_rate: Mapped[float] = mapped_column(Float)
    on_alarm: Mapped[str] = mapped_column(String(16), comment="tell; or hold: an alarm pauses the run")
    join_s: Mapped[float] = mapped_column(Float, comment="durations in seconds of uptime")
    shares_s: Mapped[float] = mapped_column(Float)
    masked_s: Mapped[float] = mapped_column(Float)
    confirm_s: Mapped[float] = mapped_column(Float)
    unmask_s: Mapped[float] = mapped_column(Float)
    charter_number: Mapped[int | None] = mapped_column(
        Integer, index=True, unique=True, comment="grows; of runs from before charters: none"
    )
    charter: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="canonical charter; of runs from before charters: none"
    )
    charter_signature: Mapped[bytes | None] = mapped_column(LargeBinary, comment="of the federation's root key")
    lineage: Mapped[bytes | None] = mapped_column(LargeBinary, comment="canonical lineage; none before a result")
    created_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")


class AttemptRow(Base):
    """One attempt at one round; its row is the lock under which the round moves."""

    __tablename__ = "attempts"
    __table_args__ = (Index("uq_attempts_run_round_attempt", "run_id", "round", "attempt", unique=True),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    round: Mapped[int] = mapped_column(Integer, comment="from 0")
    attempt: Mapped[int] = mapped_column(Integer, comment="from 0")
    status: Mapped[str] = mapped_column(String(16), index=True, comment="active, done or failed")
    spec_hash: Mapped[str] = mapped_column(String(64), unique=True, comment="hex")
    spec: Mapped[bytes] = mapped_column(LargeBinary, comment="canonical round spec")
    signature: Mapped[bytes] = mapped_column(LargeBinary, comment="of the aggregator over the spec")
    roster_version: Mapped[int] = mapped_column(ForeignKey("rosters.version"))
    scrubbed: Mapped[bool] = mapped_column(Boolean, default=False, comment="its single uploads are deleted")
    created_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")


class SessionRow(Base):
    """One secure sum of an attempt."""

    __tablename__ = "sessions"
    __table_args__ = (Index("uq_sessions_attempt_part", "attempt_id", "part", unique=True),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id"))
    part: Mapped[str] = mapped_column(NAME)
    phase: Mapped[str] = mapped_column(String(16))
    elapsed_s: Mapped[float] = mapped_column(Float, default=0.0, comment="uptime spent in this phase")
    enough_s: Mapped[float | None] = mapped_column(Float, comment="elapsed_s when enough UNMASK answers were there")
    reason: Mapped[str | None] = mapped_column(Text, comment="why it failed, or what it waits for")
    held: Mapped[bool] = mapped_column(Boolean, default=False, comment="opened, but a gate refused the sum")
    wrapped: Mapped[bool] = mapped_column(Boolean, default=False, comment="the opened sum left its ring")
    opened_digest: Mapped[str | None] = mapped_column(String(64), comment="hex; names the blob of the opened vector")
    result: Mapped[bytes | None] = mapped_column(LargeBinary, comment="canonical part result, once opened")

    @property
    def is_spoiled(self) -> bool:
        """Whether its sum came out and could not be used."""
        return self.held or self.wrapped


class JoinRow(Base):
    """A member's newest JOIN, and whether it is in the closed cohort."""

    __tablename__ = "joins"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    member: Mapped[str] = mapped_column(NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    in_cohort: Mapped[bool] = mapped_column(Boolean, default=False, comment="U1, fixed when JOIN closes")
    dropped: Mapped[bool] = mapped_column(Boolean, default=False, comment="joined again later: lost its secrets")


class ShareRow(Base):
    """One sealed share item on its way to one member."""

    __tablename__ = "shares"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    recipient: Mapped[str] = mapped_column(NAME, primary_key=True)
    sender: Mapped[str] = mapped_column(NAME, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class MessageRow(Base):
    """A member's accepted message of one step, as it arrived."""

    __tablename__ = "messages"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    step: Mapped[str] = mapped_column(String(16), primary_key=True, comment="shares, upload, confirmation or unmask")
    member: Mapped[str] = mapped_column(NAME, primary_key=True)
    body: Mapped[str] = mapped_column(Text, comment="canonical JSON of the message; empty for shares (own table)")
    sha256: Mapped[str] = mapped_column(
        String(64), comment="hex, of the canonical JSON: tells a repeat from a conflict"
    )
    upload_digest: Mapped[bytes | None] = mapped_column(LargeBinary, comment="of an upload")


class ChunkRow(Base):
    """A durable chunk of a masked upload; the bytes are a blob."""

    __tablename__ = "chunks"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    member: Mapped[str] = mapped_column(NAME, primary_key=True)
    segment: Mapped[str] = mapped_column(String(80), primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), comment="hex, of the packed bytes")


class EvidenceRow(Base):
    """A second, different message for a step: kept beside the first."""

    __tablename__ = "evidence"
    __table_args__ = (Index("uq_evidence_message", "session_id", "member", "step", "sha256", unique=True),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"))
    member: Mapped[str] = mapped_column(NAME)
    step: Mapped[str] = mapped_column(String(160))
    sha256: Mapped[str] = mapped_column(String(64))
    body: Mapped[str | None] = mapped_column(Text, comment="the refused message; chunks keep their hash only")
    received_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")


class VerdictRow(Base):
    """Who spoiled a session, with what proves it; of two who contradict each other, the accuser."""

    __tablename__ = "verdicts"
    __table_args__ = (Index("uq_verdicts_session", "session_id", "member", "offence", unique=True),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id"))
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    member: Mapped[str] = mapped_column(NAME)
    offence: Mapped[str] = mapped_column(String(32), comment="contradiction: it is not proven who")
    words: Mapped[str] = mapped_column(Text, comment="for people")
    roster_version: Mapped[int] = mapped_column(Integer, comment="a newer one ends what follows from it")
    sha256: Mapped[str | None] = mapped_column(String(64), index=True, comment="hex, of the evidence")
    evidence: Mapped[str | None] = mapped_column(Text, comment="JSON: signed messages that prove it to third parties")
    found_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")


class ResultRow(Base):
    """The signed result of a finished round."""

    __tablename__ = "results"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    hash: Mapped[str] = mapped_column(String(64), comment="hex; the next spec names it")
    body: Mapped[bytes] = mapped_column(LargeBinary, comment="canonical round result")
    signature: Mapped[bytes] = mapped_column(LargeBinary, comment="of the aggregator")
    model: Mapped[str] = mapped_column(ForeignKey("models.hash"), comment="shared parts after the round")
    published_at: Mapped[float] = mapped_column(Float, comment="Unix seconds, for humans")
    removed_at: Mapped[float | None] = mapped_column(Float, comment="Unix seconds; its vectors are kept no longer")


class RemovalRow(Base):
    """A blob that nothing names any more and that is still to be deleted."""

    __tablename__ = "removals"

    name: Mapped[str] = mapped_column(String(250), primary_key=True, comment="of a blob, or of a folder of blobs")


class SchemaFloorRow(Base):
    """Which releases can use the schema; one row."""

    __tablename__ = "schema_floor"

    revision: Mapped[str] = mapped_column(String(32), primary_key=True, comment="of the schema")
    usable_from: Mapped[str] = mapped_column(String(32), comment="oldest revision whose release can use the schema")


class LeaseRow(Base):
    """Which replica does a job that one of them should do."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[float] = mapped_column(Float, comment="Unix seconds of the database's clock")


class NonceRow(Base):
    """A nonce seen in a signed request, until the signature would be too old anyway."""

    __tablename__ = "nonces"

    member: Mapped[str] = mapped_column(NAME, primary_key=True)
    nonce: Mapped[str] = mapped_column(String(128), primary_key=True)
    expires_at: Mapped[float] = mapped_column(Float, index=True, comment="Unix seconds")


class AuditRow(Base):
    """One entry of the audit log, chained to the one before by its hash."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, comment="from 1, without gaps")
    at: Mapped[float] = mapped_column(Float, comment="Unix seconds")
    actor: Mapped[str] = mapped_column(String(80), index=True, comment="operator:NAME, local or server")
    action: Mapped[str] = mapped_column(NAME)
    details: Mapped[str] = mapped_column(Text, comment="JSON object with sorted keys")
    previous: Mapped[bytes] = mapped_column(LargeBinary, comment="hash of the entry before; empty for the first")
    hash: Mapped[bytes] = mapped_column(LargeBinary, comment="over all columns before")
    signature: Mapped[bytes] = mapped_column(LargeBinary, comment="of the aggregator over the hash")


class IncomingRow(Base):
    """A chunk of a first model that an operator uploads; the bytes are a blob."""

    __tablename__ = "incoming"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, comment="hex, of the whole file")
    index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(Integer, comment="bytes; 0 until they are durable")
    operator: Mapped[str] = mapped_column(NAME)
    received_at: Mapped[float] = mapped_column(Float, comment="Unix seconds")
