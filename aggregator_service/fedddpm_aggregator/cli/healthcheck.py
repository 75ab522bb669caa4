"""``fedddpm-aggregator healthcheck``: whether the server of this container lives.

Runs every few seconds, so it imports a little of the standard library and next to nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fedddpm_aggregator.security.service_links import service_links
from fedddpm_protocol.untrusted.plain_text import message
from fedddpm_protocol.untrusted.redaction import shown_url

NAME = "healthcheck"
HELP = "Ask this machine's server whether it lives: status 0, or 1 with a line that says why not."
URL_HELP = "of the server; by default the one that FEDDDPM_AGGREGATOR_HOST, PORT and TLS_CERT set up on this machine"
TIMEOUT_S = 5.0
_PREFIX = "FEDDDPM_AGGREGATOR_"
_MOST_BYTES = 4096
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server that listens everywhere is asked


def local_url(environment: Mapping[str, str]) -> str:
    """Where the server with these variables listens."""
    links = service_links(environment)
    environment = {name: value for name, value in environment.items() if name not in links}
    host = environment.get(_PREFIX + "HOST") or "127.0.0.1"
    host = _ANY_ADDRESS.get(host, host)
    scheme = "https" if environment.get(_PREFIX + "TLS_CERT") else "http"
    port = environment.get(_PREFIX + "PORT") or "8750"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def failure_of(url: str) -> str | None:
    """Why the server behind ``url`` does not live; None if it does.

    Its certificate is not verified: nothing is told to it, and it need not name this machine.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        return f"{shown_url(url)!r} is no URL of a server; write http://HOST:PORT or https://HOST:PORT"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    if parts.scheme == "https":
        context = ssl._create_unverified_context()  # noqa: S323 - a certificate is no part of the question
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    with contextlib.closing(connection):
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/healthz", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read(_MOST_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no host can be called so
            return f"{shown_url(url)} does not answer: {error or type(error).__name__}"
    if response.status != http.client.OK:
        return (
            f"{shown_url(url)}/healthz answers with status {response.status}: {body.decode('utf-8', 'replace')[:500]}"
        )
    return None


def run(url: str | None) -> int:
    """One look; the exit status."""
    failure = failure_of(url or local_url(os.environ))
    if failure is not None:
        print(f"error: {message(' '.join(failure.split()))}", file=sys.stderr)
    return 0 if failure is None else 1


def main(arguments: Sequence[str]) -> int:
    """The command without the rest of the program; the exit status."""
    parser = argparse.ArgumentParser(prog=f"fedddpm-aggregator {NAME}", description=HELP, allow_abbrev=False)
    parser.add_argument("--url", help=URL_HELP)
    return run(parser.parse_args(arguments).url)
