"""The OpenAPI document is the truth: generated requests, valid and not, against a served federation in a round."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from tests.aggregator.support.federations import Federation, identity_of

from fedddpm_aggregator.api.institutions import LONGEST_WAIT_S
from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.roster import Member
from fedddpm_protocol.wire.api import SIGNED_COMPONENTS

MEMBER, OPERATOR = "a", "operator"


class Signed(requests.auth.AuthBase):
    """Signs requests as a member does, or an operator where only these may."""

    def __init__(self) -> None:
        private = {name: Ed25519PrivateKey.from_private_bytes(identity_of(name).seed) for name in (MEMBER, OPERATOR)}
        keys = MappingKeyResolver(public_keys={}, private_keys=private)
        self._signer = HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=keys)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        self._signer.sign(
            request,
            key_id=OPERATOR if "/v1/operator/" in (request.url or "") else MEMBER,
            label="sig1",
            nonce=secrets.token_urlsafe(18),
            covered_component_ids=SIGNED_COMPONENTS,
            body=request.body or b"",
        )
        return request


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    operators = (Member(OPERATOR, identity_of(OPERATOR).public_key),)
    federation = Federation(Path(tmp_path_factory.mktemp("federation")), operators=operators)
    federation.start_run()
    with served_here(federation.settings) as served:
        yield served


def without_security(operations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        method: {name: value for name, value in operation.items() if name != "security"}
        for method, operation in operations.items()
    }


DOCUMENT = create_app(Settings(data=Path("unused"))).openapi()
# The signature stands over a request that is generated; what comes without one has a test of its own.
schema = schemathesis.openapi.from_dict(
    DOCUMENT | {"paths": {path: without_security(operations) for path, operations in DOCUMENT["paths"].items()}}
)


@schema.parametrize()
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
def test_generated_requests_are_answered_as_documented(case: Case, url: str) -> None:
    wait = case.query.get("wait")
    if isinstance(wait, int | float) and wait > 0.1 and not wait > LONGEST_WAIT_S:
        case.query["wait"] = 0.1  # as valid, and sooner answered
    response = case.call(base_url=url, auth=Signed(), timeout=30)
    case.validate_response(response)


@schema.include(path_regex="^/v1/").parametrize()
@settings(
    max_examples=1, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)
def test_no_operation_is_done_for_who_does_not_sign(case: Case, url: str) -> None:
    for headers in ({}, {"Signature": "sig1=:AAAA:"}, {"Signature": "x", "Signature-Input": "y"}):
        response = case.call(base_url=url, headers=headers, timeout=30)
        assert response.status_code == 401, case.path
        assert response.json()["code"] == "unauthenticated"


def test_the_document_says_what_is_signed() -> None:
    signed = {
        path for path, operations in DOCUMENT["paths"].items() if any("security" in one for one in operations.values())
    }
    assert signed == {path for path in DOCUMENT["paths"] if path.startswith("/v1/")}
