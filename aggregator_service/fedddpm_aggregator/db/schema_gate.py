"""Whether this process may work on the schema as it is now: another release may have brought it up to date meanwhile.

Who works asks here first. The database is asked every few seconds, by who sweeps or works and by nobody else, so a
request and a tick that finds nothing to do cost nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import cached_property

from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from fedddpm_aggregator.db.schema import SchemaRelease, revision_of, this_release
from fedddpm_aggregator.errors import UnavailableError

log = logging.getLogger(__name__)
LOOK_S = 2.0
_REVISION = text("SELECT version_num FROM alembic_version")


class SchemaGate:
    """Open while this release can use the schema. For any number of threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._looked_at = -math.inf
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """What the last look found, without asking the database."""
        return self._is_open

    def look(self, kept_s: float = LOOK_S) -> bool:
        """Whether work may go on; a look is kept for ``kept_s`` seconds. Raises what the database raises."""
        now = time.monotonic()
        if now - self._looked_at < kept_s:
            return self._is_open
        found, revision = self._find()
        with self._lock:
            self._looked_at = now
            is_news, self._is_open = found != self._is_open, found
        if is_news:
            self._tell(revision, found)
        return found

    def require_open(self) -> None:
        """UnavailableError unless it is open by the last look."""
        if not self._is_open:
            raise UnavailableError(
                "a newer release has changed the database, and this server is too old for it; ask again, so that one "
                "of the newer release answers. Whoever runs it: replace this server by the newer release"
            )

    @cached_property
    def _release(self) -> SchemaRelease:
        return this_release()

    def _find(self) -> tuple[bool, str | None]:
        with self._engine.connect() as connection:
            try:
                revision = connection.scalar(_REVISION)
            except ProgrammingError:  # there is no such table any more
                return False, None
            if revision == self._release.head:
                return True, revision
            return self._release.can_use(connection), revision_of(connection)

    def _tell(self, revision: str | None, is_open: bool) -> None:
        fields = {"fields": {"revision": revision, "own": self._release.head}}
        if is_open:
            log.warning("this release can use the schema again and goes on", extra=fields)
        else:
            log.error("this release cannot use the schema as it is now: it does nothing until replaced", extra=fields)
