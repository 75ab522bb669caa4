"""The HTTP interface: thin endpoints that name the caller, hand over, and answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.security import APIKeyHeader

from fedddpm_aggregator.http.authentication import SIGNER, Signer, accept
from fedddpm_aggregator.http.blob_responses import VectorResponse, blob_response
from fedddpm_aggregator.http.long_poll import long_poll
from fedddpm_aggregator.service.administration import federation
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds import reading
from fedddpm_aggregator.telemetry.logs import note
from fedddpm_protocol.wire.api import MAX_COUNT, MAX_INT32, HexHash, Problem, ResultsPage, RunState
from fedddpm_protocol.wire.messages import SignedDocument

LONGEST_WAIT_S = 300.0  # of a poll; longer ones save little
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
Name = Annotated[str, Path(pattern=NAME, examples=["decoder"])]
Round = Annotated[int, Path(ge=0, le=MAX_INT32)]
RunName = Annotated[str, Query(pattern=NAME, examples=["fashion-1"])]
PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": words, "content": {"application/problem+json": {}}}
    for status, words in (
        (401, "unauthenticated, clock-skew or replayed"),
        (403, "not enrolled, no operator, or a message in another's name"),
        (404, "no such thing"),
        (408, "the request came too slowly; send it anew"),
        (409, "too early for this step, or another message was accepted before"),
        (410, "too late for this step"),
        (413, "larger than the server reads"),
        (421, "signed for another server"),
        (414, "the path is too long"),
        (421, "signed for another server"),
        (422, "not a valid message"),
        (429, "too many requests; try again after Retry-After"),
        (431, "too many or too long headers"),
        (503, "not ready; try again after Retry-After"),
        (507, "the storage is full; nothing was stored"),
    )
}


def context(request: Request) -> Context:
    """The process's context."""
    ctx: Context = request.app.state.context
    return ctx


SIGNATURE = APIKeyHeader(
    name="Signature",
    scheme_name="HTTP message signature",
    description="RFC 9421: Ed25519, label sig1, over method, authority, path, query and Content-Digest, with a nonce; "
    "Signature-Input stands beside it",
    auto_error=False,  # admission refuses, in words
)


async def caller(request: Request, _scheme: Annotated[object, Security(SIGNATURE)] = None) -> str:
    """The member, or on their own paths the operator, that signed the request; admission checked its head."""
    signer: Signer = request.scope[SIGNER]
    if not signer.accepted:
        await run_in_threadpool(accept, context(request), signer, await request.body())
    note(member=signer.name)
    return signer.name


Ctx = Annotated[Context, Depends(context)]
Caller = Annotated[str, Depends(caller)]
router = APIRouter(prefix="/v1", tags=["federation"], responses=PROBLEMS)


@router.get("/roster")
def get_roster(ctx: Ctx, _caller: Caller) -> SignedDocument:
    """The newest roster, as the federation's root signed it."""
    return federation.newest_roster_document(ctx)


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
