"""Who is asking: HTTP Message Signatures (RFC 9421) of enrolled Ed25519 identities.

The library checks signature, covered components, age and the body's digest; whose key may sign comes from the newest
roster, and replays are refused by nonces that all replicas remember. The head of a request is checked first, so that
no body of a stranger is read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature as CryptographicMismatch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    VerifyResult,
)
from http_message_signatures.algorithms import ED25519

from fedddpm_aggregator.errors import AuthenticationError, ClockSkewError, NotEnrolledError, ReplayedError
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import UnknownMemberError
from fedddpm_protocol.wire.api import MAX_NONCE, MIN_NONCE, SIGNED_COMPONENTS

SIGNER = "fedddpm.signer"  # where a request's scope names its Signer, once its head was checked


@dataclass(frozen=True)
class SignedHead:
    """A request without its body, as the signature covers it: encoded URL and header lines."""

    method: str
    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Signer:
    """Who signed the head of a request; it speaks for the body only after :func:`accept`."""

    name: str
    is_operator: bool
    nonce: str
    head: SignedHead
    verified: VerifyResult
    roster_version: int
    accepted: bool = False  # with an empty body, together with the head


class _RosterKeys(HTTPSignatureKeyResolver):
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.resolved: str | None = None  # the identity whose key was used last
        self.is_operator = False

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        try:
            key = self._key_of(key_id)
        except UnknownMemberError:
            raise NotEnrolledError(
                f"{key_id!r} is not in roster version {self._roster.version}; ask the federation's root to enrol it"
            ) from None
        self.resolved = key_id
        return Ed25519PublicKey.from_public_bytes(key)

    def _key_of(self, key_id: str) -> bytes:
        try:
            return self._roster.public_key(key_id)
        except UnknownMemberError:
            key = self._roster.operator_key(key_id)  # no operator has the id of a member
            self.is_operator = True
            return key


class _Verifier(HTTPMessageVerifier):
    """Tells a wrong clock apart from a wrong signature, so that a client can correct the former."""

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        try:
            super().validate_created_and_expires(sig_input, max_age=max_age)  # type: ignore[no-untyped-call]
        except InvalidSignature as error:
            if isinstance(sig_input.params.get("created"), int):
                raise ClockSkewError(f"{error}; correct the clock by this server's server_time") from error
            raise


def identify(ctx: Context, head: SignedHead) -> Signer:
    """Who signed the head of a request.

    The roster is the newest that this process has seen; :func:`accept` asks whether there is a newer one. Raises
    AuthenticationError, NotEnrolledError or ClockSkewError; UnavailableError before a roster is installed.
    """
    known = ctx.known_roster()
    if known is not None:
        try:
            return _identify(ctx, head, known)
        except AuthenticationError:
            newest = _newest_roster(ctx)
            if newest.version == known.version:
                raise
            return _identify(ctx, head, newest)
    return _identify(ctx, head, _newest_roster(ctx))


def _newest_roster(ctx: Context) -> Roster:
    with ctx.database.read() as db:
        return ctx.newest_roster(db)


def _identify(ctx: Context, head: SignedHead, roster: Roster) -> Signer:
    keys = _RosterKeys(roster)
    verifier = _Verifier(signature_algorithm=ED25519, key_resolver=keys)
    verifier.max_clock_skew = timedelta(seconds=ctx.limits.signature_max_ahead_s)
    max_age = timedelta(seconds=ctx.limits.signature_max_age_s)
    try:
        results = verifier.verify(head, max_age=max_age, require_components=SIGNED_COMPONENTS)
    except InvalidSignature as error:
        if isinstance(error.__cause__, NotEnrolledError):
            raise error.__cause__ from None
        raise AuthenticationError(f"the request's signature does not hold: {_why(error, keys, roster)}") from error
    except HTTPMessageSignaturesException as error:
        raise AuthenticationError(f"the request's signature cannot be read: {error}") from error
    parameters, nonce = results[0].parameters, results[0].nonce
    if len(results) != 1 or nonce is None or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise AuthenticationError(f"one signature with a nonce of {MIN_NONCE} to {MAX_NONCE} characters is needed")
    return Signer(str(parameters["keyid"]), keys.is_operator, nonce, head, results[0], roster.version)


def accept(ctx: Context, signer: Signer, body: bytes) -> None:
    """Take a request as its signer's, under the newest roster.

    AuthenticationError for another body, ReplayedError for one seen before; NotEnrolledError if a newer roster does not
    hold the signer's key in the same role.
    """
    try:
        verifier = HTTPMessageVerifier(signature_algorithm=ED25519, key_resolver=None)
        verifier.verify_body(signer.head, [signer.verified], body)
    except HTTPMessageSignaturesException as error:
        raise AuthenticationError(f"the request's body is not the signed one: {error}") from error
    forgotten_at = time.time() + ctx.limits.nonce_kept_s
    fresh, roster_version = ctx.nonces.first(signer.name, signer.nonce, forgotten_at)
    if not fresh:
        raise ReplayedError("this signed request was seen before; sign every request anew")
    if roster_version != signer.roster_version:
        again = _identify(ctx, signer.head, _newest_roster(ctx))
        if (again.name, again.is_operator) != (signer.name, signer.is_operator):
            raise NotEnrolledError(f"{signer.name!r} has another role since roster version {again.roster_version}")


def _why(error: InvalidSignature, keys: _RosterKeys, roster: Roster) -> str:
    """The library's reason, or words for the one that it leaves empty: another key made the signature."""
    if not isinstance(error.__cause__, CryptographicMismatch):
        return str(error)
    return (
        f"it was not made with the key that roster version {roster.version} enrols for {keys.resolved!r}. Use that "
        "key, or let the root enrol the new one; if the key is right, something changed the request on its way"
    )
