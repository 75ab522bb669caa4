"""What a lying server tries on institutions: altered documents, different sets for different members, a second sum.

The server is the liar, so its part is played here; the verdicts are those of the production machines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fedddpm_aggregator.selftest.drill.attack import INSTITUTION, Attack, Verdict, refused
from fedddpm_aggregator.selftest.drill.lying_table import LyingTable
from fedddpm_aggregator.selftest.institution import Seat
from fedddpm_protocol.agreement.charter import Charter, open_charter, sign_charter
from fedddpm_protocol.agreement.documents import open_spec, sign_spec
from fedddpm_protocol.agreement.lineage import NO_RESULTS, require_follows
from fedddpm_protocol.agreement.roster import Member, Roster, open_roster, sign_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Confirmation, Join, ShareItem, SignedDocument, Survivor

T = TypeVar("T", Join, ShareItem, Survivor, Confirmation)
CHOSEN = "the server decides what institutions train"
HELPED = "institutions helped to open a sum over a set that they do not agree on"

ONE_STEP = {"max_steps": 1, "learning_rate": 1.0}
MADE = {"initial_model_hash": bytes(32), "initial_seed": b""}


@dataclass(frozen=True)
class Lied:
    """What a liar has: the documents, and as many tables as it likes."""

    root: SigningKey
    roster: Roster
    charter: Charter
    document: SignedDocument  # the specification, as the server signed it
    spec: RoundSpec
    seats: Callable[..., list[Seat]]  # fresh ones; arguments go to every machine

    def table(self) -> LyingTable:
        """A table at which everybody has joined."""
        table = LyingTable(self.seats())
        table.join()
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """All members; the first is the victim, the last one is hidden from it."""
        return self.roster.ids

    def logs(self) -> dict[str, SpentLog]:
        """An empty log for everybody."""
        return {name: SpentLog() for name in self.names}


# --- documents --------------------------------------------------------------------------------------------------------


def altered_spec(lied: Lied) -> Verdict:
    """Other terms under the old signature."""
    other = canonical.encode(lied.spec.with_terms_hash(max_steps=1, learning_rate=1.0))
    altered = SignedDocument(body=other, signature=lied.document.signature)
    return refused(INSTITUTION, lambda: open_spec(altered, lied.roster), "a specification that nobody signed was taken")


def foreign_spec(lied: Lied) -> Verdict:
    """A specification signed by another key than the roster's."""
    signed = sign_spec(lied.spec, SigningKey.generate())
    return refused(INSTITUTION, lambda: open_spec(signed, lied.roster), "a specification of a stranger was taken")


def altered_charter(lied: Lied) -> Verdict:
    """Another training under the root's signature of this one."""
    training = dataclasses.replace(lied.charter.training, learning_rate=1.0, max_steps=1, min_steps=1)
    other = canonical.encode(dataclasses.replace(lied.charter, training=training))
    signed = SignedDocument(body=other, signature=sign_charter(lied.charter, lied.root).signature)
    return refused(INSTITUTION, lambda: open_charter(signed, lied.root.public_key), CHOSEN)


def foreign_charter(lied: Lied) -> Verdict:
    """The charter of another root."""
    signed = sign_charter(lied.charter, SigningKey.generate())
    return refused(INSTITUTION, lambda: open_charter(signed, lied.root.public_key), CHOSEN)


def beside_the_charter(**changes: Any) -> Callable[[Lied], Verdict]:
    """A first round that the server signed, with something in it that does not follow from the charter."""

    def play(lied: Lied) -> Verdict:
        signed = lied.spec.with_terms_hash(**changes)
        return refused(INSTITUTION, lambda: require_follows(signed, lied.charter, NO_RESULTS, lied.roster), CHOSEN)

    return play


def unsigned_roster(lied: Lied) -> Verdict:
    """A roster with one more member, under the signature of the true one."""
    stranger = Member("stranger", SigningKey.generate().public_key)
    more = dataclasses.replace(lied.roster, members=(*lied.roster.members, stranger))
    signed = SignedDocument(body=canonical.encode(more), signature=sign_roster(lied.roster, lied.root).signature)
    return refused(INSTITUTION, lambda: open_roster(signed, lied.root.public_key), "an invented member was taken")


def older_roster(lied: Lied) -> Verdict:
    """The root's own roster of an earlier version."""
    signed = sign_roster(lied.roster, lied.root)
    newest = lied.roster.version + 1
    return refused(
        INSTITUTION, lambda: open_roster(signed, lied.root.public_key, newest), "a removed member could come back"
    )


def other_terms(lied: Lied) -> Verdict:
    """A second training on the base model, at a learning rate of nothing."""
    log, base = SpentLog(), lied.spec.base_model_hash
    log.agree(base, lied.spec.terms_hash)
    nothing = lied.spec.with_terms_hash(learning_rate=1e-30).terms_hash
    return refused(INSTITUTION, lambda: log.agree(base, nothing), "one update alone, in a sum of updates of nothing")


def second_update(lied: Lied) -> Verdict:
    """Another update of the base model under masks."""
    log, base = SpentLog(), lied.spec.base_model_hash
    log.give(base, bytes(32))
    return refused(INSTITUTION, lambda: log.give(base, bytes(31) + b"\x01"), "the difference of two updates of one")


# --- one sum ----------------------------------------------------------------------------------------------------------


def told_less(member: str, left_out: str) -> Callable[[str, list[T]], Sequence[T]]:
    """Everything for everybody, but ``member`` hears nothing of ``left_out``."""

    def tell(who: str, said: list[T]) -> Sequence[T]:
        return said if who != member else [one for one in said if _speaker(one) != left_out]

    return tell


def _speaker(one: Join | ShareItem | Survivor | Confirmation) -> str:
    if isinstance(one, Join):
        return one.parse().id
    return one.sender if isinstance(one, ShareItem) else one.id


def different_cohorts(lied: Lied) -> Verdict:
    """The victim is told of a cohort without one member."""

    def play() -> None:
        table = lied.table()
        table.share(told_less(lied.names[0], lied.names[-1]))
        table.mask()
        table.confirm()
        table.unmask(lied.logs())

    return refused(INSTITUTION, play, HELPED)


def different_sharers(lied: Lied) -> Verdict:
    """The victim never gets one member's shares; of the survivors it is told the same as all."""

    def play() -> None:
        table = lied.table()
        table.share()
        table.mask(told_less(lied.names[0], lied.names[-1]))
        table.confirm()
        table.unmask(lied.logs())

    return refused(INSTITUTION, play, HELPED)


def different_survivors(lied: Lied) -> Verdict:
    """The victim signs survivors without one member, the others all of them; all confirmations go to everybody."""

    def play() -> None:
        table = lied.table()
        table.share()
        table.mask()
        table.confirm(told_less(lied.names[0], lied.names[-1]))
        table.unmask(lied.logs())

    return refused(INSTITUTION, play, HELPED)


def too_few_confirmations(lied: Lied) -> Verdict:
    """Everybody is shown its own confirmation alone."""

    def play() -> None:
        table = lied.table()
        table.share()
        table.mask()
        table.confirm()
        table.unmask(lied.logs(), lambda who, said: [one for one in said if one.id == who])

    return refused(INSTITUTION, play, HELPED)


def a_sum_of_two(lied: Lied) -> Verdict:
    """Survivors are said to be two."""

    def play() -> None:
        table = lied.table()
        table.share()
        table.mask()
        table.confirm(lambda who, said: [one for one in said if one.id in (who, lied.names[-1])])

    return refused(INSTITUTION, play, "the sum of two updates was about to be opened")


def altered_upload(lied: Lied) -> Verdict:
    """An upload is not what the institution sent."""

    def play() -> None:
        table = lied.table()
        table.share()
        table.mask()
        table.confirm(
            lambda who, said: [
                one.model_copy(update={"upload_digest": bytes(32)}) if one.id == lied.names[0] else one for one in said
            ]
        )

    return refused(INSTITUTION, play, "another upload than the one that was sent went into the sum")


def misrouted_shares(lied: Lied) -> Verdict:
    """A member gets the shares that were sealed for another one."""

    def play() -> None:
        table = lied.table()
        table.share()
        inbox = table.inbox(lied.names[1])
        table.mask(lambda who, said: list(inbox.items) if who == lied.names[0] else said)

    return refused(INSTITUTION, play, "a share was opened by whom it was not for")


def a_stranger_joins(lied: Lied) -> Verdict:
    """A JOIN under a member's name, signed by a key that the server made."""

    def play() -> None:
        table = lied.table()
        real = table.joins[lied.names[-1]]
        forged = Join(body=real.body, signature=SigningKey.generate().sign("join", real.body))
        table.joins[lied.names[-1]] = forged
        table.share()

    return refused(INSTITUTION, play, "the server could sit in the cohort under members' names")


# --- two sums ---------------------------------------------------------------------------------------------------------


def _first_sum(lied: Lied) -> dict[str, SpentLog]:
    """Everybody answered for a sum of all, which the server calls failed."""
    table, logs = lied.table(), lied.logs()
    table.share()
    table.mask()
    table.confirm()
    table.unmask(logs)
    return logs


def second_sum(lied: Lied) -> Verdict:
    """The same base model again, over all but one: the difference of the two sums is that one's update."""
    logs, left = _first_sum(lied), lied.names[:-1]
    spent = logs[left[0]].recorded(lied.spec.base_model_hash, lied.seats()[0].part.name)

    def play() -> None:
        table = LyingTable([seat for seat in lied.seats(recorded_u3=spent) if seat.name in left])
        table.join(2)
        table.share()
        table.mask()
        table.confirm()
        table.unmask(logs)

    return refused(INSTITUTION, play, f"the update of {lied.names[-1]} alone, as the difference of two sums")


def replayed_confirmations(lied: Lied) -> Verdict:
    """The confirmations of an earlier session, for a second one."""

    def play() -> None:
        old, new = lied.table(), lied.table()
        for table in (old, new):
            table.share()
            table.mask()
            table.confirm()
        new.unmask(lied.logs(), lambda who, said: list(old.confirmed.values()))

    return refused(INSTITUTION, play, HELPED)


ATTACKS: tuple[Attack[Lied], ...] = (
    Attack("altered specification", "other terms under the old signature", altered_spec),
    Attack("foreign specification", "a specification signed by another key", foreign_spec),
    Attack("altered charter", "another training under the root's signature", altered_charter),
    Attack("foreign charter", "a charter of another root", foreign_charter),
    Attack("terms beside the charter", "one step at another learning rate", beside_the_charter(**ONE_STEP)),
    Attack("first model beside the charter", "weights that the server made", beside_the_charter(**MADE)),
    Attack("invented member", "a roster that the root did not sign", unsigned_roster),
    Attack("older roster", "a roster from before a member was removed", older_roster),
    Attack("other terms, same base", "the others are asked to learn nothing", other_terms),
    Attack("second update, same base", "one institution trains twice", second_update),
    Attack("different cohorts", "one member is told of a cohort without another", different_cohorts),
    Attack("different sharers", "one member never gets another's shares", different_sharers),
    Attack("different survivors", "one member signs survivors without another", different_survivors),
    Attack("no confirmations", "nobody is shown what the others signed", too_few_confirmations),
    Attack("sum of two", "everybody else is said to have dropped", a_sum_of_two),
    Attack("altered upload", "the server changes a masked update", altered_upload),
    Attack("misrouted shares", "one member's shares go to another", misrouted_shares),
    Attack("forged JOIN", "the server joins under a member's name", a_stranger_joins),
    Attack("second sum, one left out", "a sum is called failed and asked for again", second_sum),
    Attack("replayed confirmations", "signatures of an earlier session", replayed_confirmations),
)
