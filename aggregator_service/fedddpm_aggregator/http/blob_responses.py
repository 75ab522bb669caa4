"""Blobs as HTTP responses: immutable, with an ETag; byte ranges work, so a download that broke off goes on."""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.blobs.interface import Blobs

IMMUTABLE = "public, max-age=31536000, immutable"
_OCTETS = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_LONGEST_NUMBER = 18  # digits; no blob is larger


class VectorResponse(Response):
    """Only to say in the API's description what a download is."""

    media_type = _OCTETS


def blob_response(request: Request, blobs: Blobs, name: str, digest: str) -> Response:
    """The blob ``name``, whose content ``digest`` (hex) tells; FileNotFoundError.

    Answers 304 to who has it, and 206 to a request for one byte range (in a directory also for several); a range that
    cannot be read is ignored, one behind the end is answered by 416.
    """
    headers = {"etag": f'"{digest}"', "cache-control": IMMUTABLE}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    size = blobs.size(name)
    if isinstance(blobs, DirectoryBlobs):
        return FileResponse(blobs.path(name), media_type=_OCTETS, headers=headers)
    headers["accept-ranges"] = "bytes"
    wanted = _wanted(request, headers["etag"], size)
    if wanted is None:
        headers["content-length"] = str(size)
        return StreamingResponse(blobs.stream(name, 0, size), 200, headers, _OCTETS)
    start, end = wanted
    if start >= end:
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    headers |= {"content-range": f"bytes {start}-{end - 1}/{size}", "content-length": str(end - start)}
    return StreamingResponse(blobs.stream(name, start, end), 206, headers, _OCTETS)


def _wanted(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The one byte range [start, end) that is asked for; None: everything; start >= end: there are no such bytes."""
    asked = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if asked is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = asked.groups()
    if not first + last or len(first) > _LONGEST_NUMBER or len(last) > _LONGEST_NUMBER:
        return None
    if not first:  # the last so many bytes
        return max(size - int(last), 0), size if int(last) else 0
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
