"""TLS settings of the connection: whose certificates are trusted, and which one is shown."""

from __future__ import annotations

import ssl

from fedddpm.config import NetworkOptions
from fedddpm.errors import ConfigError
from fedddpm.files.private import private_name
from fedddpm_protocol.untrusted.redaction import named

_BOTH = "Give the paths of a PEM certificate and its key"


def tls_context(options: NetworkOptions) -> ssl.SSLContext:
    """The context of the system's authorities or the given ones; ConfigError if a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if options.ca_bundle is None else str(options.ca_bundle))
    except (OSError, ValueError) as error:
        bundle = "the CA bundle" if options.ca_bundle is None else named("the CA bundle", options.ca_bundle)
        raise ConfigError(f"{bundle} cannot be read ({error})", "Give the path of a PEM file") from None
    certificate = options.client_certificate
    if certificate is not None:
        key = options.client_key or certificate  # a PEM file may hold both
        with private_name(key, "the client's key", _BOTH) as key_name:
            try:
                context.load_cert_chain(certificate, key_name)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{named('the client certificate', certificate)} cannot be used ({error})", _BOTH
                ) from None
    return context
