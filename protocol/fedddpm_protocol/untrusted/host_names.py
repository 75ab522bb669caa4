"""Under which names a server that asks nobody who he is may be asked.

A web page can let its own name lead to an address of the network that its reader is in (DNS rebinding), and then read
what a server there answers: the browser takes it for the page's own. It sends the page's name as ``Host``, though, and
an address in that place is no name of anybody's. So addresses, ``localhost`` and known names are answered.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address


def may_be_asked_as(host: str | None, names: Collection[str] = ()) -> bool:
    """Whether a request with this ``Host`` may be answered; ``names`` (without ports) are further ones.

    None is a client that sends no such header, which no browser does.

    >>> [may_be_asked_as(host, ["metrics.example.org"]) for host in ("[::1]:80", "metrics.example.org", "evil.example")]
    [True, True, False]
    """
    if host is None:
        return True
    name = name_of(host)
    return name == "localhost" or name in {known.lower() for known in names} or _is_address(name)


def name_of(host: str) -> str:
    """A ``Host`` without its port and brackets, in small letters."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
