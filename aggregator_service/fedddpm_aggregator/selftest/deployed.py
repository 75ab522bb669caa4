"""What a server that institutions talk to must answer, seen from outside."""

from __future__ import annotations

import httpx

from fedddpm_aggregator.errors import MisdirectedError, SelftestError
from fedddpm_protocol.untrusted.redaction import shown_url

TIMEOUT_S = 15.0
_WANTED = (("/healthz", 200, "it lives"), ("/readyz", 200, "it can work"), ("/v1/state", 401, "it asks for signatures"))


def check_deployed(url: str, authority: str | None = None) -> str:
    """Ask the server behind ``url`` for what it must and must not tell; what it is, in words. SelftestError.

    ``authority``: the name that its institutions know it by, where it answers to that only.
    """
    place = shown_url(url)
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S, headers={"host": authority} if authority else None) as http:
            for path, wanted, what in _WANTED:
                response = http.get(path)
                if response.status_code != wanted and not (wanted == 401 and _knows_another_name(response)):
                    raise SelftestError(
                        f"{place}{path} answers with status {response.status_code} instead of {wanted} ({what}): "
                        f"{' '.join(response.text[:300].split())}"
                    )
    except httpx.InvalidURL as error:  # its words repeat a part of the URL
        raise SelftestError(f"{place!r} is no URL of a server; write http://HOST:PORT or https://HOST:PORT") from error
    except httpx.HTTPError as error:
        raise SelftestError(f"{place} does not answer: {error or type(error).__name__}") from error
    return ", ".join(what for _, _, what in _WANTED)


def _knows_another_name(response: httpx.Response) -> bool:
    """Whether a server refuses because it was called by another name than those it signs for; that comes first."""
    try:
        return response.status_code == MisdirectedError.status and response.json()["code"] == MisdirectedError.code
    except (ValueError, KeyError, TypeError):
        return False
