"""What an institution may do once only on a base model: train, put an update under masks, be in a sum.

SPENT: one base model and part is summed over one set of survivors, ever. An aggregator that retries a "failed" session
without one member and differences the two sums isolates that member; with this rule it never can. The record is written
durably before the UNMASK is sent, together with the message, so that a restart resends the same bytes. Only the root
can lift it, once, by a Release in a newer roster.

CONVICTED: a member of that set who is convicted of wrong shares on the same base model and part (see ``verdicts``) may
be missing from the next sum: what honest members put in is the same in both, so the difference is the convicted's own.

ONE TRAINING: that rule counts on an update being the same in every sum over one base. So an institution trains on a
base model under one set of terms, which is durable before the first step, and nothing but one update of it ever goes
under a mask. An aggregator that lets one member train in earnest and all others at a learning rate of nothing, or one
member twice, would otherwise read that member's update out of a sum, or of the difference of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedddpm_protocol.agreement.roster import Release, Roster
from fedddpm_protocol.errors import ReleaseError, SpentError, TermsError
from fedddpm_protocol.wire.messages import Unmask

MOST_ANSWERS = 3  # sums over one base model and part, over the same survivors; the root's release allows one more


@dataclass(frozen=True)
class SpentRecord:
    """What becomes durable at UNMASK."""

    base_model_hash: bytes
    part: str
    u3: tuple[str, ...]
    session_id: bytes
    unmask: Unmask
    release: Release | None = None  # consumed by this record


def without(recorded: tuple[str, ...], convicted: Collection[str]) -> tuple[str, ...]:
    """The recorded survivors but for those that were convicted by evidence: who has to meet again."""
    return tuple(member for member in recorded if member not in convicted)


def usable_release(
    recorded: tuple[str, ...],
    roster: Roster,
    base: bytes,
    part: str,
    used: Collection[Release],
    convicted: Collection[str] = (),
) -> Release | None:
    """The root's unused release that starts from the recorded survivors, with or without the convicted; or None."""
    starts = (recorded, without(recorded, convicted))
    for release in roster.releases:
        mine = (release.base_model_hash, release.part) == (base, part) and release.old_u3 in starts
        if mine and release not in used:
            return release
    return None


def check_terms(recorded: bytes, terms_hash: bytes) -> None:
    """TermsError unless a base model may be trained on under ``terms_hash``; ``recorded``: its own, or empty."""
    if recorded and recorded != terms_hash:
        raise TermsError(
            "this base model was trained on under other terms (method, epochs, steps, batch size, learning rate, clip "
            "norm, weighting or first model); a second training on it could give a single update away. The coordinator "
            "must start the run from another first model"
        )


def check_given(recorded: bytes, update_digest: bytes) -> None:
    """SpentError unless an update may go under masks; ``recorded``: what did so on this base, or empty."""
    if recorded and recorded != update_digest:
        raise SpentError(
            "another update was masked on this base model before; sums of both could give their difference away, so "
            "this institution sits out until the base model changes"
        )


def check_answers(part: str, answers: int) -> None:
    """SpentError when a base model and part was answered for as often as may be."""
    if answers >= MOST_ANSWERS:
        raise SpentError(
            f"part {part!r} of this base model was answered for {answers} times, and {MOST_ANSWERS} times at most is "
            "allowed; the federation's root can release it, or the coordinator starts a run from another first model"
        )


def check_spent(
    recorded: tuple[str, ...],
    used: Collection[Release],
    record: SpentRecord,
    answers: int = 0,
    convicted: Collection[str] = (),
) -> None:
    """Raise unless ``record`` may be written over the ``recorded`` survivors (empty: unspent), after ``answers`` of it.

    ``convicted``: of whom evidence on this base model and part was checked; they may be missing. Raises ReleaseError
    (consumed before, or for another step) or SpentError (other survivors, or too many answers).
    """
    release = record.release
    if release is not None:
        if release in used:
            raise ReleaseError("this release of the base model was already used")
        step = (release.base_model_hash, release.part, release.new_u3)
        starts = (recorded, without(recorded, convicted))
        if step != (record.base_model_hash, record.part, record.u3) or release.old_u3 not in starts:
            raise ReleaseError("this release is for another base model, part or survivors")
    elif recorded and record.u3 != without(recorded, set(convicted) - set(record.u3)):
        raise SpentError(
            f"part {record.part!r} of this base model already took part in the sum of {', '.join(recorded)}; "
            f"a second sum over {', '.join(record.u3)} could reveal a single update"
        )
    else:
        check_answers(record.part, answers)


class SpentLog:
    """The rules over records held in memory; a durable log applies the checks above inside its transactions."""

    def __init__(self, records: Iterable[SpentRecord] = ()) -> None:
        self._survivors: dict[tuple[bytes, str], tuple[str, ...]] = {}
        self._answers: Counter[tuple[bytes, str]] = Counter()
        self._used: set[Release] = set()
        self._convicted: dict[tuple[bytes, str], set[str]] = {}
        self._terms: dict[bytes, bytes] = {}
        self._given: dict[bytes, bytes] = {}
        for record in records:
            self._keep(record)

    def agree(self, base: bytes, terms_hash: bytes) -> None:
        """Bind a base model to the terms of its one training; TermsError if it is bound to others."""
        check_terms(self._terms.setdefault(base, terms_hash), terms_hash)

    def give(self, base: bytes, update_digest: bytes) -> None:
        """Bind a base model to the one update of it that goes under masks; SpentError if it is bound to another."""
        check_given(self._given.setdefault(base, update_digest), update_digest)

    def recorded(self, base: bytes, part: str) -> tuple[str, ...]:
        """Survivors this base model and part were spent on, who have to meet again; empty if unspent."""
        return without(self._survivors.get((base, part), ()), self._convicted.get((base, part), ()))

    def convict(self, base: bytes, part: str, member: str) -> None:
        """Let ``member`` be missing; to be called once evidence about this base model and part was checked."""
        self._convicted.setdefault((base, part), set()).add(member)

    def answers(self, base: bytes, part: str) -> int:
        """How many sums over this base model and part were answered for."""
        return self._answers[base, part]

    def release(self, roster: Roster, base: bytes, part: str) -> Release | None:
        """The release that applies now, or None."""
        recorded, convicted = self._survivors.get((base, part), ()), self._convicted.get((base, part), ())
        return usable_release(recorded, roster, base, part, self._used, convicted)

    def commit(self, record: SpentRecord) -> None:
        """Check and keep ``record``; raises as :func:`check_spent`."""
        base, part = record.base_model_hash, record.part
        recorded, convicted = self._survivors.get((base, part), ()), self._convicted.get((base, part), ())
        check_spent(recorded, self._used, record, self.answers(base, part), convicted)
        self._keep(record)

    def _keep(self, record: SpentRecord) -> None:
        self._survivors[record.base_model_hash, record.part] = record.u3
        self._answers[record.base_model_hash, record.part] += 1
        if record.release is not None:
            self._used.add(record.release)
