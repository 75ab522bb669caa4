"""Specifications and results as signed documents: the aggregator signs, everybody else verifies."""

from __future__ import annotations

from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import MalformedError, ResultError, SignatureError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.wire.messages import SignedDocument


def sign_spec(spec: RoundSpec, server: keys.SigningKey) -> SignedDocument:
    """The aggregator's signature over a round specification."""
    body = canonical.encode(spec)
    return SignedDocument(body=body, signature=server.sign("spec", body))


def sign_result(result: RoundResult, server: keys.SigningKey) -> SignedDocument:
    """The aggregator's signature over a round's result."""
    body = canonical.encode(result)
    return SignedDocument(body=body, signature=server.sign("result", body))


def open_result(signed: SignedDocument, roster: Roster) -> RoundResult:
    """A result signed by the roster's aggregator; SignatureError or ResultError."""
    verify_server(signed, roster, "result")
    try:
        result = canonical.decode(RoundResult, signed.body)
    except MalformedError as error:
        raise ResultError(f"the signed result is not valid: {error}", "aggregator") from error
    if result.federation != roster.federation:
        raise ResultError(f"the result belongs to federation {result.federation!r}", "aggregator")
    return result


def verify_server(signed: SignedDocument, roster: Roster, tag: str) -> None:
    """SignatureError unless the aggregator that ``roster`` names signed the document for this purpose."""
    try:
        keys.verify(roster.server_public_key, tag, signed.body, signed.signature, "aggregator")
    except SignatureError as error:
        raise SignatureError(
            f"the {tag} is not signed by the aggregator that the roster names", "aggregator"
        ) from error
