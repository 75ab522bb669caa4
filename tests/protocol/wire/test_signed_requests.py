"""What both sides agree on about a signed request; old clients and servers know these as they are."""

from __future__ import annotations

import secrets

from fedddpm_protocol.wire.api import MAX_NONCE, MIN_NONCE, NONCE_BYTES, SIGNATURE_LABEL, SIGNED_COMPONENTS


def test_an_aggregator_takes_the_nonce_that_a_client_makes() -> None:
    assert MIN_NONCE <= len(secrets.token_urlsafe(NONCE_BYTES)) <= MAX_NONCE


def test_label_and_components_stay_as_they_are() -> None:
    assert SIGNATURE_LABEL == "sig1"
    assert SIGNED_COMPONENTS == ("@method", "@authority", "@path", "@query", "content-digest")
