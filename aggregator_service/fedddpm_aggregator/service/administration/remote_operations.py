"""What operators do from afar. Asking for what is done already changes nothing and is answered the same."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.errors import NotFoundError, OperatorConflictError, OperatorError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration import model_uploads
from fedddpm_aggregator.service.administration.rosters import put_in_force
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_aggregator.service.administration.runs import (
    end_run,
    pause_run,
    resume_run,
    start_run,
    started_before,
)
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import SessionLine, lines_of, run_called
from fedddpm_protocol.wire.messages import SignedDocument

Outcome = Literal["done", "unchanged"]
Verb = Literal["pause", "resume", "end"]
ATTEMPTS = 50  # in one answer
_ALREADY = {"pause": ("paused",), "resume": ("running", "stalled"), "end": ("ended", "finished")}
_ACTIONS = {"pause": pause_run, "resume": resume_run, "end": end_run}


def start(
    ctx: Context, operator: str, document: SignedDocument, durations: OperatorSettings, initial_model: str
) -> tuple[Outcome, str]:
    """Install a root-signed charter, from an uploaded first model (SHA-256, hex); what became of it and the run's name.

    OperatorConflictError where it was installed with other durations, or another charter of its number was.
    """
    charter = started_before(ctx, document, durations)
    if charter is None:
        with model_uploads.assembled(ctx, initial_model) as path:
            try:
                charter, is_new = start_run(ctx, document, durations, path, audit.operator_actor(operator))
            except OperatorConflictError:
                raise
            except OperatorError as error:
                raise OperatorError(str(error).replace(str(path), "the first model")) from error
    else:
        is_new = False
    model_uploads.forget(ctx, initial_model)
    return ("done" if is_new else "unchanged"), charter.run


def steer(ctx: Context, operator: str, run_name: str, verb: Verb) -> Outcome:
    """Pause, resume or end a run; NotFoundError for an unknown one, OperatorConflictError where it cannot be."""
    with ctx.database.read() as db:
        status = db.scalar(select(RunRow.status).where(RunRow.name == run_name))
    if status is None:
        raise NotFoundError(f"there is no run called {run_name!r}")
    if status in _ALREADY[verb]:
        return "unchanged"
    if status not in queries.OPEN:
        raise OperatorConflictError(f"run {run_name!r} is {status}; it is too late to {verb} it")
    _ACTIONS[verb](ctx, audit.operator_actor(operator), run_name)
    return "done"


def install(ctx: Context, operator: str, document: SignedDocument) -> tuple[Outcome, int]:
    """Put a root-signed roster in force; what became of it and its version."""
    roster, is_new = put_in_force(ctx, document, audit.operator_actor(operator))
    return ("done" if is_new else "unchanged"), roster.version


def refused(ctx: Context, operator: str, request: str, code: str, reason: str) -> None:
    """Note a refused request of an operator in the audit log, as far as it has room."""
    with ctx.transaction() as db:
        audit.record_refusal(ctx, db, audit.operator_actor(operator), request=request, code=code, reason=reason)


def rounds(ctx: Context, run_name: str | None, start: int) -> tuple[list[SessionLine], int | None]:
    """Sessions of a run (the newest by default) of at most 50 attempts from number ``start`` on, and where to go on."""
    with ctx.database.read() as db:
        run = run_called(db, run_name)
        mine = (AttemptRow.run_id == run.id, AttemptRow.id >= start)
        attempts = db.scalars(select(AttemptRow).where(*mine).order_by(AttemptRow.id).limit(ATTEMPTS)).all()
        lines = [line for attempt in attempts for line in lines_of(db, run, attempt)]
        return lines, attempts[-1].id + 1 if len(attempts) == ATTEMPTS else None
