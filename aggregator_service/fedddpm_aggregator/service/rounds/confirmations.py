"""Steps 4 to 6: survivors, confirmations, and the answers that let the sum be opened."""

from __future__ import annotations

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import PhaseOverError, WrongPhaseError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phases import advance
from fedddpm_aggregator.service.rounds.sessions import (
    known,
    load,
    reached,
    remember,
    require_open,
    require_own,
    require_reached,
    survivors_of,
)
from fedddpm_protocol.session.verdicts import judge_answer
from fedddpm_protocol.wire.messages import Confirmation, Confirmations, Survivors, Unmask
from fedddpm_protocol.wire.phases import Phase


def get_survivors(ctx: Context, spec_hash: str, part: str) -> Survivors:
    """U3 with upload digests, from CONFIRM on."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.CONFIRM)
        return survivors_of(db, live).message


def post_confirmation(ctx: Context, caller: str, spec_hash: str, part: str, confirmation: Confirmation) -> None:
    """Accept a survivor's signature over U3."""
    require_own(caller, confirmation.id)
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.CONFIRMATION, caller, confirmation):
            return
        require_open(live, Phase.CONFIRM)
        survivors_of(db, live).verify_confirmation(confirmation)
        remember(db, live, queries.CONFIRMATION, caller, confirmation)
        advance(ctx, db, live)


def get_confirmations(ctx: Context, spec_hash: str, part: str) -> Confirmations:
    """All confirmations, from UNMASK on."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.UNMASK)
        bodies = queries.bodies_of(db, live.session.id, queries.CONFIRMATION)
        return Confirmations(confirmations=tuple(Confirmation.model_validate_json(body) for body in bodies))


def post_unmask(ctx: Context, caller: str, spec_hash: str, part: str, unmask: Unmask) -> None:
    """Accept a survivor's answer; durable when this returns, so that the institution may stop resending it.

    One that reveals a wrong share is kept, and convicts the caller; a sum is opened without that share.
    A right answer that comes while or after the sum is opened is kept as well: nobody is punished for being last.
    """
    require_own(caller, unmask.id)
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.UNMASK, caller, unmask):
            return
        if live.phase is Phase.FAILED:
            raise PhaseOverError(f"the session of part {part!r} failed: {live.session.reason}; join the next attempt")
        if not reached(live, Phase.UNMASK):
            raise WrongPhaseError(f"part {part!r} is in {live.phase}; an UNMASK comes after the confirmations")
        survivors = survivors_of(db, live)
        verdict = judge_answer(survivors, unmask)
        remember(db, live, queries.UNMASK, caller, unmask)
        if verdict is not None:
            blame.keep_verdict(ctx, db, live.attempt, live.session, survivors.sharing.cohort, verdict)
        advance(ctx, db, live)
