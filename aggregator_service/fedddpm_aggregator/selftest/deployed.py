"""What a server that institutions talk to must answer, seen from outside."""

from __future__ import annotations

import httpx

from fedddpm_aggregator.errors import SelftestError

TIMEOUT_S = 15.0
_WANTED = (("/healthz", 200, "it lives"), ("/readyz", 200, "it can work"), ("/v1/state", 401, "it asks for signatures"))


def check_deployed(url: str) -> str:
    """Ask the server behind ``url`` for what it must and must not tell; what it is, in words. SelftestError."""
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
            for path, wanted, what in _WANTED:
                response = http.get(path)
                if response.status_code != wanted:
                    raise SelftestError(
                        f"{url}{path} answers with status {response.status_code} instead of {wanted} ({what}): "
                        f"{' '.join(response.text[:300].split())}"
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SelftestError(f"{url} does not answer: {error or type(error).__name__}") from error
    return ", ".join(what for _, _, what in _WANTED)
