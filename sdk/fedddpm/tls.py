"""TLS settings of the connection: whose certificates are trusted, and which one is shown."""

from __future__ import annotations

import ssl

from fedddpm.config import NetworkOptions
from fedddpm.errors import ConfigError
from fedddpm.private_files import require_private


def tls_context(options: NetworkOptions) -> ssl.SSLContext:
    """The context of the system's authorities or the given ones; ConfigError if a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if options.ca_bundle is None else str(options.ca_bundle))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA bundle {options.ca_bundle} cannot be read ({error})", "Give a PEM file") from error
    if options.client_certificate is not None:
        key = options.client_key or options.client_certificate  # a PEM file may hold both
        require_private(key, "the client's key")
        try:
            context.load_cert_chain(options.client_certificate, options.client_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"the client certificate {options.client_certificate} cannot be used ({error})",
                "Give a PEM certificate and its key",
            ) from error
    return context
