"""Waiting for a database that is on its way, and not for one that says no."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.errors import OperatorError

PAUSE_S, TELL_EVERY_S = 1.0, 5.0
# What PostgreSQL says while it starts, stops, or is full for a moment; any other FATAL is about the settings. There is
# no SQLSTATE in a failed connection (libpq keeps it to itself), so the words must do.
_FOR_NOW = ("starting up", "shutting down", "not yet accepting", "recovery", "too many clients", "connection slots")
_FOR_GOOD = ("FATAL:", "no password supplied")


def wait_for_database(url: str, wait_s: float, tell: Callable[[str], None]) -> None:
    """Return once the database takes a connection; ``tell`` hears every few seconds why it does not.

    OperatorError after ``wait_s``, or at once where waiting cannot help (credentials, no such database, SQLite).
    """
    database = Database(url)
    began, told = time.monotonic(), -math.inf
    try:
        while (reason := _refusal(database)) is not None:
            now = time.monotonic()
            if now - began >= wait_s:
                raise OperatorError(
                    f"the database did not answer for {wait_s:.0f} s: {reason}; check the host and the port in "
                    "FEDDDPM_AGGREGATOR_DATABASE_URL, and that PostgreSQL runs"
                )
            if now - told >= TELL_EVERY_S:
                told = now
                tell(f"waiting for the database ({now - began:.0f} of {wait_s:.0f} s): {reason}")
            time.sleep(min(PAUSE_S, max(0.0, began + wait_s - now)))
    finally:
        database.close()


def _refusal(database: Database) -> str | None:
    """Why there is no connection for now; None if there is one, OperatorError if there will be none."""
    try:
        with database.engine.connect():
            return None
    except OperationalError as error:
        said = str(error.orig).splitlines()[0]
        for_now = not any(words in said for words in _FOR_GOOD) or any(words in said for words in _FOR_NOW)
        if database.is_sqlite:
            raise OperatorError(f"the database file cannot be used: {said}; check the data directory") from error
        if not for_now:
            raise OperatorError(
                f"the database refuses: {said}; check user, password and name in FEDDDPM_AGGREGATOR_DATABASE_URL"
            ) from error
        return said
