"""HTTP Message Signatures (RFC 9421) with a Content-Digest (RFC 9530) on every request, as an ``httpx.Auth``.

Covered: method, authority, path, query and digest of the body, so nobody on the way can change a request.
``created`` and a fresh nonce let the aggregator refuse replays; the clock can be corrected once by its time.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Generator

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver, algorithms

from fedddpm.identity import Identity
from fedddpm_protocol.wire.api import NONCE_BYTES, SIGNATURE_LABEL, SIGNED_COMPONENTS


class RequestSigner(httpx.Auth):
    """Signs each request with the institution's Ed25519 identity; ``keyid`` is the member id."""

    requires_request_body = True

    def __init__(self, identity: Identity, member_id: str) -> None:
        private = Ed25519PrivateKey.from_private_bytes(identity.key.seed)
        self._member_id = member_id
        self._signer = HTTPMessageSigner(
            signature_algorithm=algorithms.ED25519,
            key_resolver=MappingKeyResolver(public_keys={}, private_keys={member_id: private}),
        )
        self.clock_offset_s = 0.0  # aggregator's clock minus ours

    def correct_clock(self, server_time: float) -> float:
        """Sign by the aggregator's clock from now on; returns how far ours is off, in seconds."""
        self.clock_offset_s = server_time - time.time()
        return self.clock_offset_s

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put ``Content-Digest``, ``Signature-Input`` and ``Signature`` on the request."""
        now = datetime.datetime.fromtimestamp(time.time() + self.clock_offset_s, datetime.UTC)
        self._signer.sign(
            request,
            key_id=self._member_id,
            created=now,
            nonce=secrets.token_urlsafe(NONCE_BYTES),
            label=SIGNATURE_LABEL,
            covered_component_ids=SIGNED_COMPONENTS,
            body=request.content,
        )
        yield request
