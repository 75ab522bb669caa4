"""The page over HTTP, at ``/`` and below ``/page/``: HTML, its stream of changes, its files, and downloads.

What it shows is what the aggregator knows anyway, because it runs the protocol, and what the institutions know too:

* the roster: names of members, versions, fingerprints of keys;
* who did which step of which session and who did not (every step is a message to the aggregator), when a member's last
  request came, who was in a cohort and in its sum (both stand in the signed results);
* of an opened sum the mean losses, the width of its ring, and how many bytes were moved (follows from specifications);
* published models and signed results, for download.

What it does not show: a single upload, share or mask, a single loss or sample count (nobody but their owner knows
those), and not the opened sum of the weights either. That sum is in the signed results, but two of them side by side,
over members that differ by one, tell that one's sample count; a page should not put them side by side.

Everything works without scripts. With them, a stream of server-sent events keeps the page as it is now.
"""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from fedddpm_aggregator.dashboard.access import PageAccess
from fedddpm_aggregator.dashboard.live import LivePage
from fedddpm_aggregator.dashboard.views import Views
from fedddpm_aggregator.errors import NotFoundError, PageRefusedError
from fedddpm_aggregator.http.blob_responses import blob_response
from fedddpm_aggregator.http.problems import problem
from fedddpm_aggregator.http.version_watch import VersionWatch
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds import reading
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.wire.api import MAX_INT32, HexHash

log = logging.getLogger(__name__)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Page:
    """What the routes need of one process."""

    def __init__(self, ctx: Context, watch: VersionWatch) -> None:
        self.ctx, self.views = ctx, Views(ctx)
        self.live = LivePage(watch, self.views.frame)


async def admitted(request: Request) -> Page:
    """The page, for whoever may see it."""
    door: PageAccess = request.app.state.page_door
    door.admit(request)
    page: Page = request.app.state.page
    return page


Shown = Annotated[Page, Depends(admitted)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Path(pattern=NAME)]
router = APIRouter(include_in_schema=False)


def install_page(app: FastAPI, settings: Settings) -> None:
    """Add the page to ``app``; OperatorError for a password file that cannot be used."""
    door = PageAccess(settings)
    app.state.page_door = door
    app.include_router(router)
    app.add_exception_handler(PageRefusedError, _refused)
    if door.closed_because is not None:
        log.info("no page at /", extra={"fields": {"reason": door.closed_because}})
    elif door.is_open_to_all:
        log.warning("the page at / has no password: everybody who reaches this server sees it")
    elif door.asks_for_password and settings.tls_cert is None:
        log.info("the page's password is sent in the clear unless a proxy in front of this server speaks TLS")


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, PageRefusedError):
        raise error
    return problem(error.http_status, error.problem_code, str(error), error.headers)


@router.get("/")
def get_page(
    page: Shown,
    run: Annotated[str | None, Query(pattern=f"{NAME}|^$")] = None,
    before: Annotated[int | None, Query(ge=1, le=MAX_INT32)] = None,
) -> Response:
    """The whole page, of the current run or another."""
    return HTMLResponse(page.views.page(run or None, before), headers=HEADERS)


@router.get("/page/events")
async def get_events(request: Request, page: Shown, seen: Annotated[str, Query(max_length=80)] = "") -> Response:
    """Changes of the page as server-sent events, from what the browser shows on."""
    if page.live.is_full:
        raise PageRefusedError(
            503, "unavailable", "too many browsers watch; this one looks later", {"Retry-After": "15"}
        )
    shown = request.headers.get("last-event-id", seen)[:80]
    headers = {**HEADERS, "x-accel-buffering": "no"}
    return StreamingResponse(page.live.events(shown), media_type="text/event-stream", headers=headers)


@router.get("/page/static/{name}")
def get_static(request: Request, _page: Shown, name: str) -> Response:
    """A file of the page."""
    if name not in _STATIC:
        raise NotFoundError(f"the page has no file {name!r}")
    content, etag = _file(name)
    headers = {**HEADERS, "etag": etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_STATIC[name], headers=headers)


@router.get("/page/models/{model}.safetensors")
def get_model(request: Request, page: Shown, model: HexHash) -> Response:
    """A published model as a file."""
    response = blob_response(request, page.ctx.blobs, reading.model_name(page.ctx, model), model)
    response.headers.update(HEADERS)
    response.headers["content-disposition"] = f'attachment; filename="model-{model[:16]}.safetensors"'
    return response


@router.get("/page/results/{run}/{round_index}.json")
async def get_result(page: Shown, run: Name, round_index: Annotated[int, Path(ge=0, le=MAX_INT32)]) -> Response:
    """A round's result as the aggregator signed it, as a file."""
    found = await run_in_threadpool(reading.results_page, page.ctx, run, round_index)
    if not found.results:
        raise NotFoundError(f"run {run!r} has no result of round {round_index}")
    name = f"{run}-round-{round_index + 1}-result.json"
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Response(found.results[0].model_dump_json(), media_type="application/json", headers=headers)


@lru_cache
def _file(name: str) -> tuple[bytes, str]:
    content = (resources.files("fedddpm_aggregator.dashboard") / "static" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
