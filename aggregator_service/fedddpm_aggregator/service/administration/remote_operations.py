"""What operators do from afar. Asking for what is done already changes nothing and is answered the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Literal

from sqlalchemy import select

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.errors import NotFoundError, OperatorConflictError, OperatorError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration import model_uploads
from fedddpm_aggregator.service.administration.rosters import put_in_force
from fedddpm_aggregator.service.administration.run_settings import RunSettings
from fedddpm_aggregator.service.administration.runs import end_run, pause_run, resume_run, start_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import SessionLine, lines_of, run_called
from fedddpm_protocol.wire.messages import SignedDocument

Outcome = Literal["done", "unchanged"]
Verb = Literal["pause", "resume", "end"]
ATTEMPTS = 50  # in one answer
_ALREADY = {"pause": ("paused",), "resume": ("running", "stalled"), "end": ("ended", "finished")}
_ACTIONS = {"pause": pause_run, "resume": resume_run, "end": end_run}


def start(ctx: Context, operator: str, settings: RunSettings, initial_model: str) -> Outcome:
    """Start a run from an uploaded first model (SHA-256, hex); OperatorConflictError for a run with other settings."""
    request = _digest(settings, initial_model)
    if _started_by(ctx, settings.name, request):
        model_uploads.forget(ctx, initial_model)
        return "unchanged"
    with model_uploads.assembled(ctx, initial_model) as path:
        try:
            start_run(ctx, settings, path, audit.operator_actor(operator), request)
        except OperatorError as error:
            if _started_by(ctx, settings.name, request):  # by the same request to another replica
                return "unchanged"
            raise OperatorError(str(error).replace(str(path), "the first model")) from error
    model_uploads.forget(ctx, initial_model)
    return "done"


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


def _started_by(ctx: Context, name: str, request: str) -> bool:
    """Whether this request started the run; OperatorConflictError if another one did."""
    with ctx.database.read() as db:
        run = db.scalar(select(RunRow).where(RunRow.name == name))
    if run is not None and run.request != request:
        raise OperatorConflictError(f"a run called {name!r} exists, with other settings; choose another name")
    return run is not None


def _digest(settings: RunSettings, initial_model: str) -> str:
    content = json.dumps([dataclasses.asdict(settings), initial_model], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
