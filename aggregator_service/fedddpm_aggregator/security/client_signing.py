"""Signing requests to an aggregator (RFC 9421), as its own clients do: operators, and institutions of a selftest."""

from __future__ import annotations

import secrets

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519

from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.api import NONCE_BYTES, SIGNATURE_LABEL, SIGNED_COMPONENTS


def message_signer(who: str, key: SigningKey) -> HTTPMessageSigner:
    """The library's signer for ``who``, an id in the roster."""
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    keys = MappingKeyResolver(public_keys={}, private_keys={who: private})
    return HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=keys)


def sign_request(signer: HTTPMessageSigner, who: str, request: httpx.Request) -> None:
    """Put digest and signature of ``who`` on a request, with a fresh nonce."""
    signer.sign(
        request,
        key_id=who,
        label=SIGNATURE_LABEL,
        nonce=secrets.token_urlsafe(NONCE_BYTES),
        covered_component_ids=SIGNED_COMPONENTS,
        body=request.content,
    )
