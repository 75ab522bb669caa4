"""One secure sum without a server: whoever holds the table tells each institution what it likes.

The institutions are the production machines and make all messages. The table only passes them on, or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from fedddpm_aggregator.selftest.institution import Seat
from fedddpm_protocol.agreement.chunks import upload_digest
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.api import ShareInbox
from fedddpm_protocol.wire.messages import Confirmation, Join, ShareItem, Shares, Survivor, Unmask

T = TypeVar("T")
Tell = Callable[[str, list[T]], Sequence[T]]  # what a member is told, of what there is to tell


def truth(_member: str, said: list[T]) -> Sequence[T]:
    """Everybody is told everything."""
    return said


class LyingTable:
    """The steps of one sum, in order; each asks every seat, and raises what the first that refuses raises."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = {seat.name: seat for seat in seats}
        self.joins: dict[str, Join] = {}
        self.shares: dict[str, Shares] = {}
        self.survivors: list[Survivor] = []
        self.confirmed: dict[str, Confirmation] = {}
        self.answers: dict[str, Unmask] = {}

    def join(self, seq: int = 1) -> None:
        """Everybody's JOIN."""
        self.joins = {name: seat.machine.join(seq) for name, seat in self.seats.items()}

    def share(self, tell: Tell[Join] = truth) -> None:
        """Everybody's shares for the cohort it is told of."""
        for name, seat in self.seats.items():
            self.shares[name] = seat.machine.receive_cohort(tell(name, list(self.joins.values())))

    def inbox(self, member: str, tell: Tell[ShareItem] = truth) -> ShareInbox:
        """The shares for a member, as it is told, and what their dealers committed to."""
        items = [item for shares in self.shares.values() for item in shares.items if item.recipient == member]
        told = tell(member, items)
        sharers = tuple(sorted({member, *(item.sender for item in told)}))
        return ShareInbox(items=tuple(told), deals=tuple(self.shares[name].deal for name in sharers), sharers=sharers)

    def mask(self, tell: Tell[ShareItem] = truth) -> None:
        """Everybody's update under masks."""
        for name, seat in self.seats.items():
            seat.mask_after(self.inbox(name, tell))
            chunks = seat.machine.finish_upload().chunks
            plan = seat.machine.plan
            digest = upload_digest(name, plan.segments, plan.chunk_coordinates, chunks)
            self.survivors.append(Survivor(id=name, upload_digest=digest))

    def confirm(self, tell: Tell[Survivor] = truth) -> None:
        """Everybody's signature under the survivors it is told of."""
        for name, seat in self.seats.items():
            self.confirmed[name] = seat.machine.receive_survivors(tell(name, list(self.survivors)))

    def unmask(self, logs: dict[str, SpentLog], tell: Tell[Confirmation] = truth) -> None:
        """Everybody's answer, written down in its log first."""
        for name, seat in self.seats.items():
            told = tell(name, list(self.confirmed.values()))
            self.answers[name] = seat.machine.receive_confirmations(told, logs[name].commit)
