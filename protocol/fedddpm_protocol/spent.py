"""The SPENT rule: one base model and part is summed over one set of survivors, ever.

An aggregator that retries a "failed" session without one member and differences the two sums isolates that member;
with this rule it never can. The record is written durably before the UNMASK is sent, together with the message, so
that a restart resends the same bytes. Only the root can lift it, once, by a Release in a newer roster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedddpm_protocol.errors import ReleaseError, SpentError
from fedddpm_protocol.messages import Unmask
from fedddpm_protocol.roster import Release, Roster


@dataclass(frozen=True)
class SpentRecord:
    """What becomes durable at UNMASK."""

    base_model_hash: bytes
    part: str
    u3: tuple[str, ...]
    session_id: bytes
    unmask: Unmask
    release: Release | None = None  # consumed by this record


def usable_release(
    recorded: tuple[str, ...], roster: Roster, base: bytes, part: str, used: Collection[Release]
) -> Release | None:
    """The root's unused release that starts from the recorded survivors, or None."""
    for release in roster.releases:
        if (release.base_model_hash, release.part, release.old_u3) == (base, part, recorded) and release not in used:
            return release
    return None


def check_spent(recorded: tuple[str, ...], used: Collection[Release], record: SpentRecord) -> None:
    """Raise unless ``record`` may be written over the ``recorded`` survivors (empty: unspent).

    Raises ReleaseError (consumed before, or for another step) or SpentError (other survivors).
    """
    release = record.release
    if release is not None:
        if release in used:
            raise ReleaseError("this release of the base model was already used")
        step = (release.base_model_hash, release.part, release.old_u3, release.new_u3)
        if step != (record.base_model_hash, record.part, recorded, record.u3):
            raise ReleaseError("this release is for another base model, part or survivors")
    elif recorded and recorded != record.u3:
        raise SpentError(
            f"part {record.part!r} of this base model already took part in the sum of {', '.join(recorded)}; "
            f"a second sum over {', '.join(record.u3)} could reveal a single update"
        )


class SpentLog:
    """The rule over records held in memory; a durable log applies :func:`check_spent` inside its transaction."""

    def __init__(self, records: Iterable[SpentRecord] = ()) -> None:
        self._survivors: dict[tuple[bytes, str], tuple[str, ...]] = {}
        self._used: set[Release] = set()
        for record in records:
            self._keep(record)

    def recorded(self, base: bytes, part: str) -> tuple[str, ...]:
        """Survivors this base model and part were spent on; empty if unspent."""
        return self._survivors.get((base, part), ())

    def release(self, roster: Roster, base: bytes, part: str) -> Release | None:
        """The release that applies now, or None."""
        return usable_release(self.recorded(base, part), roster, base, part, self._used)

    def commit(self, record: SpentRecord) -> None:
        """Check and keep ``record``; raises as :func:`check_spent`."""
        check_spent(self.recorded(record.base_model_hash, record.part), self._used, record)
        self._keep(record)

    def _keep(self, record: SpentRecord) -> None:
        self._survivors[record.base_model_hash, record.part] = record.u3
        if record.release is not None:
            self._used.add(record.release)
