"""The lock and the database file of a state folder."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from fedddpm.errors import StateError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY,
    method TEXT NOT NULL,
    next_round INTEGER NOT NULL,
    last_result BLOB NOT NULL,           -- hash of the newest accepted result, empty before the first
    initial_model_hash BLOB NOT NULL,
    base_model_hash BLOB NOT NULL,       -- shared parts in model_file
    model_file TEXT NOT NULL,            -- the institution's whole network, inside the state folder
    finished INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS lineages (    -- what a run's next specification follows from; without a row: nothing yet
    run TEXT PRIMARY KEY, lineage BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS charters (    -- that were accepted, or wait to be approved
    number INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    hash BLOB NOT NULL,
    document BLOB NOT NULL,              -- as the root signed it
    approved INTEGER NOT NULL            -- by somebody here, or because nobody has to
) STRICT;
CREATE TABLE IF NOT EXISTS spent (
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL, part TEXT NOT NULL,
    u3 TEXT NOT NULL,                    -- JSON list of member ids
    session_id BLOB NOT NULL,
    spec_hash BLOB NOT NULL,             -- where the message goes
    message BLOB NOT NULL,               -- the encoded UNMASK, resent until acknowledged
    acknowledged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (root, base_model_hash, part)
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (    -- names of spent sums on the wire; one that is missing is the part's
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL, part TEXT NOT NULL, session TEXT NOT NULL,
    PRIMARY KEY (root, base_model_hash, part)
) STRICT;
CREATE TABLE IF NOT EXISTS trainings (   -- one a base model
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL,
    terms_hash BLOB NOT NULL,            -- written before the first step
    update_digest BLOB,                  -- of what went under masks, written before it did
    PRIMARY KEY (root, base_model_hash)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (     -- sums that were answered for; without a row: as many as in spent
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL, part TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (root, base_model_hash, part)
) STRICT;
CREATE TABLE IF NOT EXISTS releases_used (
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL, part TEXT NOT NULL, old_u3 TEXT NOT NULL, new_u3 TEXT NOT NULL,
    PRIMARY KEY (root, base_model_hash, part, old_u3, new_u3)
) STRICT;
CREATE TABLE IF NOT EXISTS convictions ( -- members whom evidence convicts, by the sum that it is about
    root BLOB NOT NULL, base_model_hash BLOB NOT NULL, part TEXT NOT NULL, member TEXT NOT NULL,
    evidence TEXT NOT NULL,              -- JSON, as it was checked
    PRIMARY KEY (root, base_model_hash, part, member)
) STRICT;
CREATE TABLE IF NOT EXISTS bases_seen (base_model_hash BLOB PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS round_notes ( -- what a round came to here, as it became known; read by nothing but tables
    run TEXT NOT NULL, round INTEGER NOT NULL,
    figures TEXT NOT NULL,               -- JSON object
    PRIMARY KEY (run, round)
) STRICT;
CREATE TABLE IF NOT EXISTS traffic (
    run TEXT NOT NULL, round INTEGER NOT NULL,
    parameters_up INTEGER NOT NULL, parameters_down INTEGER NOT NULL,
    payload_up INTEGER NOT NULL, payload_down INTEGER NOT NULL,
    bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
    PRIMARY KEY (run, round)
) STRICT;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open or make the database; whatever is committed is on the disk. StateError if it is unusable."""
    _keep_private(path)
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        db.executescript(_SCHEMA)
    except sqlite3.Error as error:
        db.close()
        raise unusable(path, error) from error
    return db


def _keep_private(path: Path) -> None:
    """Make the file, for this user alone: it holds the secret that trainings draw from. SQLite's others follow it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise StateError(
            f"{path} cannot be kept from other users of this machine ({error.strerror})",
            "Choose a state_dir that belongs to the user who runs this",
        ) from None


def unusable(path: Path, error: sqlite3.Error) -> StateError:
    """What a failure of the database means for the user."""
    if "full" in str(error):
        return StateError(
            f"the disk is full: {path} cannot be written", "Free some space and start again; nothing is lost"
        )
    return StateError(
        f"the state {path} is unusable ({error})",
        "Restore the folder from a backup and start with --after-restore, or ask the coordinator for a new enrolment",
    )
