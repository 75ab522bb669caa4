"""Who may see the page: people on this machine, whoever has the password, or nobody."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from pathlib import Path

from fastapi import Request

from fedddpm_aggregator.errors import OperatorError, PageRefusedError
from fedddpm_aggregator.http.rate_limits import address_key
from fedddpm_aggregator.security.private_files import PrivateFileError, read_private
from fedddpm_aggregator.settings import Settings

USER = "operator"
SHORTEST_PASSWORD = 12  # characters
MOST_FAILURES, FAILURES_S = 5, 60.0  # wrong passwords of one address in so many seconds
_MOST_ADDRESSES = 4096
_PASSED_ON = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
HOW = (
    "To see the page from elsewhere, write a password into a file that only this server's user can read and start with "
    "--page-password-file FILE (or FEDDDPM_AGGREGATOR_PAGE_PASSWORD_FILE)"
)


class PageAccess:
    """Decides about each request to the page, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._page = settings.page
        self._password = read_password(settings.page_password_file) if settings.page_password_file else None
        self._listens_here = is_loopback(settings.host)
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def closed_because(self) -> str | None:
        """Why nobody may see the page; None if somebody may."""
        if self._page == "off":
            return "the page is switched off (--page off)"
        if self._page == "auto" and self._password is None and not self._listens_here:
            return f"the page is closed: this server listens on the network and the page has no password. {HOW}"
        return None

    @property
    def is_open_to_all(self) -> bool:
        """Whether the page asks nobody for anything, on the network too."""
        return self._page == "on" and self._password is None and not self._listens_here

    @property
    def asks_for_password(self) -> bool:
        """Whether a password is needed."""
        return self._password is not None

    def admit(self, request: Request) -> None:
        """PageRefusedError unless whoever asks may see the page."""
        closed = self.closed_because
        if closed is not None:
            raise PageRefusedError(404, "not-found", closed)
        if self._password is not None:
            self._check_password(request)
        elif self._page == "auto":
            _require_this_machine(request)

    def _check_password(self, request: Request) -> None:
        address, now = address_key(request.client.host if request.client is not None else ""), time.monotonic()
        failures, since = self._failures.get(address, (0, now))
        if now - since > FAILURES_S:
            failures, since = 0, now
        if failures >= MOST_FAILURES:
            wait = {"Retry-After": str(int(FAILURES_S - (now - since)) + 1)}
            raise PageRefusedError(429, "too-many-tries", "too many wrong passwords; try again in a minute", wait)
        given = request.headers.get("authorization")
        if given is not None and _is_right(given, self._password or ""):
            return
        if given is not None:
            self._failures[address] = (failures + 1, since)
            self._failures.move_to_end(address)
            while len(self._failures) > _MOST_ADDRESSES:
                self._failures.popitem(last=False)
        ask = {"WWW-Authenticate": 'Basic realm="fedddpm aggregator", charset="UTF-8"'}
        words = f"the page needs the user name {USER!r} and the password in the server's --page-password-file"
        raise PageRefusedError(401, "password", words, ask)


def read_password(path: Path) -> str:
    """The password in a file, without the line's end; OperatorError says what is wrong with the file."""
    try:
        text = read_private(path).strip("\r\n")
    except PrivateFileError as error:
        if isinstance(error.__cause__, FileNotFoundError) and "/" not in str(path):
            raise OperatorError(
                "--page-password-file: there is no such file here (its name is not shown: it may be the password). "
                "Give the whole path of a file that holds the password"
            ) from None
        raise OperatorError(f"--page-password-file: {error}") from error
    if len(text) < SHORTEST_PASSWORD or not text.isprintable():
        raise OperatorError(f"{path} must hold one line with a password of at least {SHORTEST_PASSWORD} characters")
    return text


def is_loopback(host: str) -> bool:
    """Whether a host name or address (with or without brackets) means this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _require_this_machine(request: Request) -> None:
    """No password: only a browser on this machine, and none that a proxy or a foreign site's name leads here."""
    url_host = request.url.hostname or ""
    client = request.client.host if request.client is not None else ""
    passed_on = [name for name in _PASSED_ON if name in request.headers]
    if passed_on or not is_loopback(url_host) or not is_loopback(client):
        raise PageRefusedError(
            404, "not-found", f"without a password the page is shown on this machine only, not through a proxy. {HOW}"
        )


def _is_right(header: str, password: str) -> bool:
    kind, _, credentials = header.partition(" ")
    try:
        given = base64.b64decode(credentials.strip(), validate=True) if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        given = b""
    # Hashes have one length, so that the comparison tells nothing of the password's.
    return hmac.compare_digest(_sha256(given), _sha256(f"{USER}:{password}".encode()))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
