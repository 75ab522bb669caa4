"""The HTTP interface of one secure sum: JOIN, SHARES, MASKED, CONFIRM, UNMASK; and accusations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from fedddpm_aggregator.api import examples
from fedddpm_aggregator.api.deps import PROBLEMS, Caller, Ctx, Name
from fedddpm_aggregator.http.blob_responses import VectorResponse
from fedddpm_aggregator.service.rounds import confirmations, joins, shares, sum_checks, uploads
from fedddpm_protocol.wire.api import (
    MAX_INT32,
    CohortReply,
    HexHash,
    JoinReceipt,
    ShareInbox,
    UploadDigests,
    UploadStatus,
)
from fedddpm_protocol.wire.messages import (
    Accusation,
    Confirmation,
    Confirmations,
    Join,
    Shares,
    Survivors,
    Unmask,
    Unmasks,
    UploadManifest,
)

router = APIRouter(prefix="/v1/sessions/{spec}/{part}", tags=["secure sum"], responses=PROBLEMS)


@router.post("/joins")
def post_join(
    ctx: Ctx, caller: Caller, spec: HexHash, part: Name, join: Annotated[Join, Body(examples=[examples.JOIN])]
) -> JoinReceipt:
    """Join with fresh session keys."""
    return joins.post_join(ctx, caller, spec, part, join)


@router.get("/cohort")
def get_cohort(ctx: Ctx, _caller: Caller, spec: HexHash, part: Name) -> CohortReply:
    """The closed cohort."""
    return joins.get_cohort(ctx, spec, part)


@router.post("/shares", response_class=Response)
def post_shares(
    ctx: Ctx, caller: Caller, spec: HexHash, part: Name, message: Annotated[Shares, Body(examples=[examples.SHARES])]
) -> Response:
    """Hand in the sealed shares for all others."""
    shares.post_shares(ctx, caller, spec, part, message)
    return Response(status_code=200)


@router.get("/shares")
def get_shares(ctx: Ctx, caller: Caller, spec: HexHash, part: Name) -> ShareInbox:
    """The shares addressed to the caller."""
    return shares.get_inbox(ctx, caller, spec, part)


@router.post("/accusations", response_class=Response)
def post_accusation(
    ctx: Ctx,
    caller: Caller,
    spec: HexHash,
    part: Name,
    message: Annotated[Accusation, Body(examples=[examples.ACCUSATION])],
) -> Response:
    """Show that shares are not what their dealers committed to, and leave the session."""
    shares.post_accusation(ctx, caller, spec, part, message)
    return Response(status_code=200)


@router.put(
    "/chunks/{segment}/{index}",
    status_code=200,
    response_class=Response,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def put_chunk(
    request: Request,
    ctx: Ctx,
    caller: Caller,
    spec: HexHash,
    part: Name,
    segment: Name,
    index: Annotated[int, Path(ge=0, le=MAX_INT32)],
) -> Response:
    """Store one masked chunk, durable when this answers."""
    data = await request.body()
    await run_in_threadpool(uploads.put_chunk, ctx, caller, spec, part, segment, index, data)
    return Response(status_code=200)


@router.get("/upload")
def get_upload(ctx: Ctx, caller: Caller, spec: HexHash, part: Name) -> UploadStatus:
    """Which chunks of the caller arrived."""
    return uploads.get_upload(ctx, caller, spec, part)


@router.post("/upload", response_class=Response)
def post_upload(
    ctx: Ctx,
    caller: Caller,
    spec: HexHash,
    part: Name,
    manifest: Annotated[UploadManifest, Body(examples=[examples.UPLOAD])],
) -> Response:
    """Complete the upload: the caller is a survivor once the phase closes."""
    uploads.post_upload(ctx, caller, spec, part, manifest)
    return Response(status_code=200)


@router.get("/survivors")
def get_survivors(ctx: Ctx, _caller: Caller, spec: HexHash, part: Name) -> Survivors:
    """The one set of survivors of this session."""
    return confirmations.get_survivors(ctx, spec, part)


@router.post("/confirmations", response_class=Response)
def post_confirmation(
    ctx: Ctx,
    caller: Caller,
    spec: HexHash,
    part: Name,
    confirmation: Annotated[Confirmation, Body(examples=[examples.CONFIRMATION])],
) -> Response:
    """Confirm the survivors."""
    confirmations.post_confirmation(ctx, caller, spec, part, confirmation)
    return Response(status_code=200)


@router.get("/confirmations")
def get_confirmations(ctx: Ctx, _caller: Caller, spec: HexHash, part: Name) -> Confirmations:
    """All confirmations that arrived."""
    return confirmations.get_confirmations(ctx, spec, part)


@router.post("/unmask", response_class=Response)
def post_unmask(
    ctx: Ctx, caller: Caller, spec: HexHash, part: Name, message: Annotated[Unmask, Body(examples=[examples.UNMASK])]
) -> Response:
    """Reveal one share for every sharer; durable when this answers."""
    confirmations.post_unmask(ctx, caller, spec, part, message)
    return Response(status_code=200)


@router.get("/unmasks")
def get_unmasks(ctx: Ctx, caller: Caller, spec: HexHash, part: Name) -> Unmasks:
    """The answers that a published sum was opened with; for its survivors."""
    return sum_checks.get_unmasks(ctx, caller, spec, part)


@router.get("/uploads/{member}")
def get_digests(ctx: Ctx, caller: Caller, spec: HexHash, part: Name, member: Name) -> UploadDigests:
    """The chunk digests of a survivor of a published sum; for its survivors."""
    return sum_checks.get_digests(ctx, caller, spec, part, member)


@router.get("/uploads/{member}/{segment}/{index}", response_class=VectorResponse)
def get_masked_chunk(
    ctx: Ctx,
    caller: Caller,
    spec: HexHash,
    part: Name,
    member: Name,
    segment: Name,
    index: Annotated[int, Path(ge=0, le=MAX_INT32)],
) -> Response:
    """One masked chunk of a survivor of a published sum, packed as it came; for its survivors."""
    return VectorResponse(sum_checks.get_chunk(ctx, caller, spec, part, member, segment, index))
