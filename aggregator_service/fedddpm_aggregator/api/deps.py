"""What endpoints share: who calls, the process's context, names in paths, and the answers that any of them may give."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import APIKeyHeader

from fedddpm_aggregator.http.authentication import SIGNER, Signer, accept
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.telemetry.logs import note
from fedddpm_protocol.wire.api import MAX_INT32, SIGNATURE_LABEL, Problem

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
        (414, "the path is too long"),
        (421, "signed for another server"),
        (422, "not a valid message"),
        (429, "too many requests; try again after Retry-After"),
        (431, "too many or too long headers"),
        (503, "not ready; try again after Retry-After"),
        (507, "the storage is full; nothing was stored"),
    )
}
SIGNATURE = APIKeyHeader(
    name="Signature",
    scheme_name="HTTP message signature",
    description=f"RFC 9421: Ed25519, label {SIGNATURE_LABEL}, over method, authority, path, query and Content-Digest, "
    "with a nonce; Signature-Input stands beside it",
    auto_error=False,  # admission refuses, in words
)


def context(request: Request) -> Context:
    """The process's context."""
    ctx: Context = request.app.state.context
    return ctx


async def caller(request: Request, _scheme: Annotated[object, Security(SIGNATURE)] = None) -> str:
    """The member, or on their own paths the operator, that signed the request; admission checked its head."""
    signer: Signer = request.scope[SIGNER]
    if not signer.accepted:
        await run_in_threadpool(accept, context(request), signer, await request.body())
    note(member=signer.name)
    return signer.name


Ctx = Annotated[Context, Depends(context)]
Caller = Annotated[str, Depends(caller)]
