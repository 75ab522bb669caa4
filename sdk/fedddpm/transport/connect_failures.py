"""Why no answer came: what waiting can mend is named, what it cannot is raised at once."""

from __future__ import annotations

import ssl

import httpx

from fedddpm.errors import TransportError

_PROBE_S = 5.0


def why_no_answer(error: httpx.TransportError, base_url: str, *, may_be_other_scheme: bool) -> str:
    """The reason to show while waiting; ``may_be_other_scheme``: nothing ever came from there, and no proxy is between.

    Raises:
        TransportError: the address or the certificate is wrong.
    """
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise TransportError(f"{base_url} cannot be asked ({error})", "Check aggregator_url") from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise TransportError(
            f"the certificate of {base_url} is not trusted ({error})",
            "Give the authority that signed it as network.ca_bundle; never switch the check off",
        ) from error
    if may_be_other_scheme:
        _refuse_other_scheme(error, httpx.URL(base_url))
    return str(error) or type(error).__name__


def _refuse_other_scheme(error: httpx.TransportError, url: httpx.URL) -> None:
    if url.scheme == "https" and "WRONG_VERSION_NUMBER" in str(error):
        raise TransportError(
            f"{url} does not speak TLS: there is a server, but not for https",
            f"Ask the coordinator for the address; if it is {url.copy_with(scheme='http')}, set that as aggregator_url",
        ) from error
    if url.scheme == "http" and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and _speaks_tls(url):
        raise TransportError(
            f"{url} speaks https only", f"Set aggregator_url to {url.copy_with(scheme='https')}"
        ) from error


def _speaks_tls(url: httpx.URL) -> bool:
    """Whether a TLS handshake gets an answer; nothing is sent in it, so the certificate need not be trusted."""
    try:
        ssl.get_server_certificate((url.host, url.port or 80), timeout=_PROBE_S)
    except (OSError, ValueError):
        return False
    return True
