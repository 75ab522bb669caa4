"""Every request is signed as RFC 9421 says, and the library itself verifies it."""

import datetime

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    MappingKeyResolver,
    algorithms,
)

from fedddpm.identity import Identity
from fedddpm.transport.request_signing import RequestSigner
from fedddpm_protocol.wire.api import SIGNATURE_MAX_AGE_S, SIGNED_COMPONENTS

URL = "https://aggregator.example.org:8443/v1/state?after=0&wait=20"


@pytest.fixture
def identity():
    return Identity.generate("hospital-a")


def sign(identity, method="POST", url=URL, content=b"body", signer=None):
    request = httpx.Request(method, url, content=content)
    next((signer or RequestSigner(identity, identity.member_id)).sync_auth_flow(request))
    return request


def verify(identity, request, body):
    verifier = HTTPMessageVerifier(
        signature_algorithm=algorithms.ED25519,
        key_resolver=MappingKeyResolver(
            public_keys={"hospital-a": Ed25519PublicKey.from_public_bytes(identity.public_key)}, private_keys={}
        ),
    )
    return verifier.verify(
        request,
        body=body,
        require_components=SIGNED_COMPONENTS,
        max_age=datetime.timedelta(seconds=SIGNATURE_MAX_AGE_S),
    )


@pytest.mark.parametrize(("method", "content"), [("GET", b""), ("POST", b'{"a": 1}'), ("PUT", bytes(range(256)))])
def test_the_library_verifies_what_was_signed(identity, method, content):
    (result,) = verify(identity, sign(identity, method, content=content), content)
    assert result.label == "sig1"
    assert result.parameters["keyid"] == "hospital-a"
    assert result.parameters["alg"] == "ed25519"
    assert {f'"{name}"' for name in SIGNED_COMPONENTS} <= set(result.covered_components)


def test_nonces_never_repeat(identity):
    signer = RequestSigner(identity, "hospital-a")
    inputs = {sign(identity, signer=signer).headers["signature-input"] for _ in range(50)}
    nonces = {text.split('nonce="')[1].split('"')[0] for text in inputs}
    assert len(nonces) == 50


@pytest.mark.parametrize("change", ["method", "path", "query", "authority", "body"])
def test_a_changed_request_does_not_verify(identity, change):
    signed, body = sign(identity), b"body"
    url, method = httpx.URL(URL), "POST"
    if change == "method":
        method = "PUT"
    elif change == "path":
        url = url.copy_with(path="/v1/other", query=url.query)
    elif change == "query":
        url = url.copy_with(query=b"after=1&wait=20")
    elif change == "authority":
        url = url.copy_with(host="other.example.org")
    else:
        body = b"evil"
    forged = httpx.Request(method, url, content=body, headers=signed.headers)
    with pytest.raises(HTTPMessageSignaturesException):
        verify(identity, forged, body)


def test_the_clock_can_be_corrected_by_the_aggregator(identity):
    signer = RequestSigner(identity, "hospital-a")
    far = datetime.datetime.now(datetime.UTC).timestamp() + 7200
    assert signer.correct_clock(far) == pytest.approx(7200, abs=5)
    text = sign(identity, signer=signer).headers["signature-input"]
    created = int(text.split("created=")[1].split(";")[0])
    assert created == pytest.approx(far, abs=5)
