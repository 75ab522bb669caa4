"""Error to problem document (RFC 9457): every refusal has a stable code, a status and words that help.

Unknown errors become a plain 500 whose document shows nothing of the inside; the log has the rest.
"""

from __future__ import annotations

import errno
import logging
import time
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError, StorageFullError
from fedddpm_aggregator.errors import AggregatorError, AuthenticationError
from fedddpm_aggregator.telemetry.logs import note
from fedddpm_protocol.errors import (
    ConflictError,
    DuplicateError,
    LocalProtocolError,
    ProtocolError,
    SignatureError,
    UnknownMemberError,
)
from fedddpm_protocol.wire.api import PROBLEM_TYPE, Problem

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_PROTOCOL_STATUS: tuple[tuple[type[ProtocolError], int], ...] = (
    (ConflictError, 409),
    (DuplicateError, 409),
    (SignatureError, 403),
    (UnknownMemberError, 403),
)
_HTTP_CODES = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 422: "validation"}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_POSTGRESQL_DISK_FULL = "53100"


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A problem document as a response; its code goes into the request's line of the log."""
    note(problem=code)
    document = Problem(
        type=PROBLEM_TYPE + code,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        server_time=time.time() if code == "clock-skew" else None,
    )
    return Response(document.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def problem_of(error: Exception) -> Response:
    """The problem document of any error."""
    if isinstance(error, AggregatorError):
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
        if isinstance(error, AuthenticationError) and error.status == 401:
            headers = {"WWW-Authenticate": "Signature"}
        return problem(error.status, error.code, str(error), headers)
    if isinstance(error, ProtocolError) and not isinstance(error, LocalProtocolError):
        status = next((status for kind, status in _PROTOCOL_STATUS if isinstance(error, kind)), 422)
        return problem(status, error.code, str(error))
    if isinstance(error, RequestValidationError):
        return problem(422, "validation", _validation_detail(error))
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.BAD_REQUEST:  # how FastAPI says that a body is not JSON at all
            return problem(422, "validation", "the body is not JSON")
        code = _HTTP_CODES.get(error.status_code, "http-error")
        return problem(error.status_code, code, str(error.detail), dict(error.headers or {}))
    if isinstance(error, StorageFullError) or _is_full(error):
        return problem(507, "storage-full", str(StorageFullError()), {"Retry-After": "60"})
    if isinstance(error, BlobsUnavailableError | BlobSettingsError):
        log.error("blobs cannot be used: %s", error)
        return problem(503, "unavailable", "the blob storage does not answer; try again later", {"Retry-After": "5"})
    if isinstance(error, DBAPIError | PoolTimeoutError):
        log.error("database error", exc_info=error)
        return problem(503, "unavailable", "the database does not answer; try again later", {"Retry-After": "5"})
    log.error("internal error", exc_info=error)
    return problem(500, "internal", "the aggregator made a mistake; its log has the details")


def install(app: FastAPI) -> None:
    """Let every error of ``app`` become a problem document."""

    async def handle(request: Request, error: Exception) -> Response:
        response = problem_of(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["allow"] = ", ".join(_methods_at(request))
        return response

    for kind in (
        AggregatorError,
        ProtocolError,
        RequestValidationError,
        HTTPException,
        StorageFullError,
        BlobsUnavailableError,
        BlobSettingsError,
        DBAPIError,
        PoolTimeoutError,
        OSError,
    ):
        app.add_exception_handler(kind, handle)


def _methods_at(request: Request) -> list[str]:
    """What the resource takes, by all routes of its path; the router names those of the first one only."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if taken(method)]


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate == _POSTGRESQL_DISK_FULL or "disk is full" in str(error.orig)


def _validation_detail(error: RequestValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(step) for step in first.get("loc", ()))
    return f"{place}: {first.get('msg', 'not valid')}"
