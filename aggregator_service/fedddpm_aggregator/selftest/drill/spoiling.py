"""What one member tries on the sum of all: shares that are not what it committed to, dealt or revealed.

A spoiler must not get a wrong sum published, and must be named with evidence that convicts it before everybody. Whoever
is convicted sits out the next attempts, so these attacks come last, and each is another member's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection

from pydantic import BaseModel

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.drill.against_server import Besieged, exact, take
from fedddpm_aggregator.selftest.drill.attack import NOBODY, SERVER, Attack, Verdict
from fedddpm_aggregator.selftest.institution import STEPS, Seat
from fedddpm_aggregator.selftest.running import opened
from fedddpm_aggregator.service import blame
from fedddpm_protocol.errors import AccusationError, ProtocolError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.verdicts import verify_evidence
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import Deal, DealBody, Shares, Unmask
from fedddpm_protocol.wire.phases import Phase

_OTHER = bytes(32)  # in the place of what is right


def a_wrong_answer(besieged: Besieged) -> Verdict:
    """The last member reveals shares that it was never dealt."""
    *honest, liar = besieged.seats_after("confirm")

    def altered(message: Unmask) -> Unmask:
        body = message.parse()
        revealed = {dealer: dataclasses.replace(share, share=_OTHER) for dealer, share in body.revealed.items()}
        encoded = dataclasses.replace(body, revealed=revealed).encode()
        return Unmask(id=liar.name, body=encoded, signature=liar.institution.key.sign("unmask", encoded))

    take(honest[:-1], ("unmask",))
    _says(liar, altered)
    liar.unmask()
    take(honest[-1:], ("unmask",))
    try:
        honest[0].wait_for(Phase.DONE)
    except SelftestError as error:
        return Verdict(NOBODY, f"one member stops a sum for which there are right shares: {error}")
    right = exact(besieged, [*honest, liar], "its shares were left out")
    return right if right.leaked else _named(besieged, liar, f"{right.noticed}; ")


def a_wrong_share(besieged: Besieged) -> Verdict:
    """The last member deals a share that is not the one that it commits to; who gets it accuses it."""
    victim, *others, liar = besieged.seats_after("join")

    def altered(message: Shares) -> Shares:
        deal = message.deal.parse()
        lines = [
            dataclasses.replace(line, self_mask=_OTHER) if line.recipient == victim.name else line
            for line in deal.lines
        ]
        body = canonical.encode(DealBody(deal.session_id, deal.dealer, tuple(lines)))
        signed = Deal(body=body, signature=liar.institution.key.sign("deal", body))
        return message.model_copy(update={"deal": signed})

    _says(liar, altered)
    take([victim, *others, liar], ("share",))
    try:
        victim.mask()
    except AccusationError:
        if victim.machine.accusation is None:
            raise
        victim.post("accusations", victim.machine.accusation)
        return _named(besieged, liar)
    return Verdict(NOBODY, f"{victim.name} masks over a share that can never be put together with others")


def a_wrong_secret(besieged: Besieged) -> Verdict:
    """The last member deals shares of another secret than the one that it committed to."""
    seats = besieged.seats_after("join")
    secrets = seats[-1].machine._secrets
    if secrets is None:
        raise SelftestError("a machine that has joined holds no secrets")
    secrets.self_mask[0] ^= 1
    take(seats, STEPS[1:])
    with contextlib.suppress(SelftestError):  # it failed: nothing can be opened without the secret
        seats[0].wait_for(Phase.DONE)
    return _named(besieged, seats[-1])


def _says(liar: Seat, altered: Callable[..., BaseModel]) -> None:
    """From now on ``liar`` sends ``altered`` messages."""
    post = liar.post
    liar.post = lambda step, message: post(step, altered(message))  # type: ignore[method-assign]


def _named(besieged: Besieged, liar: Seat, before: str = f"{SERVER}: ") -> Verdict:
    """Whether the liar, and nobody else, is convicted of what happened in its session, by evidence that holds."""
    with opened(besieged.federation) as ctx, ctx.database.read() as db:
        attempt = queries.attempt_by_spec(db, liar.spec.hash.hex())
        sessions = [] if attempt is None else queries.sessions_of(db, attempt.id)
        rows = [row for session in sessions for row in blame.verdicts_in(db, session.id)]
        told = [blame.told(row) for row in rows]
        evidence = [Evidence.model_validate_json(row.evidence) for row in rows if row.evidence]
    try:
        convicted = {verify_evidence(liar.roster, one).verdict.member for one in evidence}
    except ProtocolError as error:
        return Verdict(NOBODY, f"the server accuses somebody by evidence that does not hold: {error}")
    if convicted != {liar.name}:
        return Verdict(NOBODY, f"{liar.name} spoils sums, and {_listed(convicted)} named for it")
    return Verdict(before + "; ".join(told))


def _listed(members: Collection[str]) -> str:
    return f"{', '.join(sorted(members))} is" if members else "nobody is"


ATTACKS: tuple[Attack[Besieged], ...] = (
    Attack("wrong share", "a share is revealed that was never dealt", a_wrong_answer),
    Attack("share not as committed", "a share is dealt beside its commitment", a_wrong_share),
    Attack("shares of a wrong secret", "what is dealt is not what was committed to", a_wrong_secret),
)
