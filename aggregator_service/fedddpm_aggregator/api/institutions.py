"""Endpoints for institutions outside a sum: roster, state (long poll), models, results."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from fedddpm_aggregator.api.deps import PROBLEMS, Caller, Ctx, Name, Round, RunName
from fedddpm_aggregator.http.blob_responses import VectorResponse, blob_response
from fedddpm_aggregator.http.long_poll import long_poll
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.administration import rosters
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds import reading
from fedddpm_aggregator.telemetry.logs import note
from fedddpm_protocol.wire.api import MAX_COUNT, MAX_INT32, HexHash, ResultsPage, RunState
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import SignedDocument

LONGEST_WAIT_S = 300.0  # of a poll; longer ones save little
router = APIRouter(prefix="/v1", tags=["federation"], responses=PROBLEMS)


@router.get("/roster")
def get_roster(ctx: Ctx, _caller: Caller) -> SignedDocument:
    """The newest roster, as the federation's root signed it."""
    return rosters.newest_roster_document(ctx)


@router.get("/state", response_model=RunState)
async def get_state(
    request: Request,
    ctx: Ctx,
    _caller: Caller,
    after: Annotated[int, Query(ge=0, le=MAX_COUNT, description="answer once the version is above this")] = 0,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="wait at most so many seconds")] = 0.0,
) -> Response:
    """What goes on; waits for news when asked (long poll), with white space every 20 seconds until the JSON comes."""
    if not wait:
        return Response((await run_in_threadpool(state_json, ctx))[1], media_type="application/json")
    note(long_poll=True)
    return await long_poll(request.app.state.watch, request.app.state.newest, ctx.metrics.long_polls, after, wait)


def state_json(ctx: Context) -> tuple[int, bytes]:
    """The state's version, and the state as JSON."""
    ctx.schema.require_open()  # who waited may have waited for long
    state = reading.run_state(ctx)
    return state.version, state.model_dump_json().encode()


@router.get("/evidence/{sha256}", response_model=Evidence)
def get_evidence(ctx: Ctx, _caller: Caller, sha256: HexHash) -> Response:
    """The evidence that convicts a member, for everybody to check with the roster."""
    return Response(blame.evidence_json(ctx, sha256), media_type="application/json")


@router.get("/models/{model}", response_class=VectorResponse)
def get_model(request: Request, ctx: Ctx, _caller: Caller, model: HexHash) -> Response:
    """A model by its hash, as safetensors; immutable, byte ranges work."""
    return blob_response(request, ctx.blobs, reading.model_name(ctx, model), model)


@router.get("/results")
def get_results(
    ctx: Ctx,
    _caller: Caller,
    run: RunName,
    start: Annotated[int, Query(alias="from", ge=0, le=MAX_INT32, description="first round, from 0")] = 0,
) -> ResultsPage:
    """Signed results of a run in round order: at most 100, and as many as fit an answer."""
    return reading.results_page(ctx, run, start)


@router.get("/results/{run}/{round_index}/opened/{part}", response_class=VectorResponse)
def get_opened(
    request: Request,
    ctx: Ctx,
    _caller: Caller,
    run: Name,
    round_index: Round,
    part: Name,
) -> Response:
    """The opened sum of a part: packed little-endian ring words, from which everybody derives the next model."""
    name, digest = reading.opened_name(ctx, run, round_index, part)
    return blob_response(request, ctx.blobs, name, digest)
