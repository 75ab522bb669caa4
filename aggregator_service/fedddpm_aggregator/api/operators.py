"""The HTTP interface for operators: runs, rosters and the audit log, signed by keys that the roster names."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from fedddpm_aggregator.api import examples
from fedddpm_aggregator.api.deps import NAME, PROBLEMS, Caller, Ctx, Name, context
from fedddpm_aggregator.http.authentication import SIGNER, Signer
from fedddpm_aggregator.http.problems import problem_of
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration import model_uploads, remote_operations
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_protocol.wire.api import MAX_INT32, Count, HexHash, UnixSeconds
from fedddpm_protocol.wire.messages import SignedDocument


class StartRun(BaseModel):
    """A run to start: its charter, and the first model that was uploaded before."""

    model_config = ConfigDict(extra="forbid")

    charter: SignedDocument  # by the federation's root
    durations: OperatorSettings
    initial_model: HexHash  # SHA-256 of the file


class Done(BaseModel):
    """What became of a request: it was done, or there was nothing left to do."""

    outcome: Literal["done", "unchanged"]
    run: str | None = None
    roster_version: int | None = None


class IncomingModel(BaseModel):
    """How far the upload of a first model is."""

    chunk_bytes: Annotated[int, Field(ge=1)]
    stored: tuple[int, ...]


class RoundsPage(BaseModel):
    """Sessions in order, and what to ask for next; nothing when these are the last."""

    lines: list[SessionLine]
    next: int | None


class AuditEntry(BaseModel):
    """One entry of the audit log; bytes are hexadecimal."""

    seq: Count
    at: UnixSeconds
    actor: str
    action: str
    details: dict[str, str | int]
    previous: str
    hash: str
    signature: str


class _Recorded(APIRoute):
    """Notes refused requests that would have changed something."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, wrapped."""
        handle = super().get_route_handler()

        async def handle_and_record(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                signer: Signer = request.scope[SIGNER]
                if request.method != "GET":
                    asked = f"{request.method} {request.url.path}"
                    document = json.loads(bytes(problem_of(error).body))
                    code, reason = str(document["code"]), str(document["detail"])
                    await run_in_threadpool(
                        remote_operations.refused, context(request), signer.name, asked, code, reason
                    )
                raise

        return handle_and_record


router = APIRouter(prefix="/v1/operator", tags=["operators"], responses=PROBLEMS, route_class=_Recorded)


@router.get("/models/{sha256}")
def get_incoming(ctx: Ctx, _operator: Caller, sha256: HexHash) -> IncomingModel:
    """Which chunks of a first model are here."""
    return IncomingModel(chunk_bytes=model_uploads.chunk_bytes(ctx), stored=model_uploads.stored_chunks(ctx, sha256))


@router.put(
    "/models/{sha256}/chunks/{index}",
    status_code=200,
    response_class=Response,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def put_chunk(
    request: Request, ctx: Ctx, operator: Caller, sha256: HexHash, index: Annotated[int, Path(ge=0, le=10**6)]
) -> Response:
    """Store one chunk of a first model, durable when this answers."""
    await run_in_threadpool(model_uploads.put_chunk, ctx, operator, sha256, index, await request.body())
    return Response(status_code=200)


@router.post("/runs")
def start_run(ctx: Ctx, operator: Caller, request: Annotated[StartRun, Body(examples=[examples.START_RUN])]) -> Done:
    """Start a run that the federation's root has signed; the same again is fine."""
    outcome, run = remote_operations.start(ctx, operator, request.charter, request.durations, request.initial_model)
    return Done(outcome=outcome, run=run)


@router.post("/runs/{run}/{verb}")
def steer_run(ctx: Ctx, operator: Caller, run: Name, verb: remote_operations.Verb) -> Done:
    """Pause, resume or end a run; the same again is fine."""
    return Done(outcome=remote_operations.steer(ctx, operator, run, verb), run=run)


@router.post("/rosters")
def install_roster(
    ctx: Ctx, operator: Caller, roster: Annotated[SignedDocument, Body(examples=[examples.ROSTER])]
) -> Done:
    """Put a roster in force that the federation's root has signed; the same again is fine."""
    outcome, version = remote_operations.install(ctx, operator, roster)
    return Done(outcome=outcome, roster_version=version)


@router.get("/rounds")
def get_rounds(
    ctx: Ctx,
    _operator: Caller,
    run: Annotated[str | None, Query(pattern=NAME, description="the newest by default")] = None,
    start: Annotated[int, Query(alias="from", ge=0, le=MAX_INT32, description="next of the page before")] = 0,
) -> RoundsPage:
    """Sessions of a run in order, of at most 50 attempts."""
    lines, following = remote_operations.rounds(ctx, run, start)
    return RoundsPage(lines=lines, next=following)


@router.get("/audit")
def get_audit(
    ctx: Ctx,
    _operator: Caller,
    start: Annotated[int, Query(alias="from", ge=1, le=10**15, description="first entry, from 1")] = 1,
) -> list[AuditEntry]:
    """The audit log in order, at most 500 entries."""
    with ctx.database.read() as db:
        return [AuditEntry(**audit.shown(row)) for row in audit.entries(db, start)]
