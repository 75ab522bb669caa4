"""Who is asking: HTTP Message Signatures (RFC 9421) of enrolled Ed25519 identities.

The library checks signature, covered components, age and the body's digest; which member may sign comes from the
newest roster, and replays are refused by remembered nonces.
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
)
from http_message_signatures.algorithms import ED25519

from fedddpm_aggregator import store
from fedddpm_aggregator.errors import AuthenticationError, ClockSkewError, NotEnrolledError, ReplayedError
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.api import SIGNED_COMPONENTS
from fedddpm_protocol.errors import UnknownMemberError
from fedddpm_protocol.roster import Roster

MIN_NONCE, MAX_NONCE = 16, 128  # characters


@dataclass(frozen=True)
class SignedRequest:
    """A request as the signature covers it: encoded URL, header lines, whole body."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class _RosterKeys(HTTPSignatureKeyResolver):
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.resolved: str | None = None  # the member whose key was used last

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        try:
            key = Ed25519PublicKey.from_public_bytes(self._roster.public_key(key_id))
        except UnknownMemberError:
            raise NotEnrolledError(
                f"{key_id!r} is not in roster version {self._roster.version}; ask the federation's root to enrol it"
            ) from None
        self.resolved = key_id
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


def authenticate(ctx: Context, request: SignedRequest) -> str:
    """The member that signed ``request``.

    Raises AuthenticationError, NotEnrolledError, ClockSkewError or ReplayedError; UnavailableError before a roster is
    installed.
    """
    with ctx.database.read() as db:
        roster = ctx.newest_roster(db)
    member, nonce = _verify(ctx, roster, request)
    limits = ctx.limits
    now = time.time()
    with ctx.database.write_relaxed() as db:
        forgotten_at = now + limits.signature_max_age_s + 2 * limits.signature_max_ahead_s
        fresh = store.remember_nonce(db, member, nonce, forgotten_at)
    if not fresh:
        raise ReplayedError("this signed request was seen before; sign every request anew")
    return member


def _verify(ctx: Context, roster: Roster, request: SignedRequest) -> tuple[str, str]:
    keys = _RosterKeys(roster)
    verifier = _Verifier(signature_algorithm=ED25519, key_resolver=keys)
    verifier.max_clock_skew = timedelta(seconds=ctx.limits.signature_max_ahead_s)
    try:
        results = verifier.verify(
            request,
            max_age=timedelta(seconds=ctx.limits.signature_max_age_s),
            require_components=SIGNED_COMPONENTS,
            body=request.body,
        )
    except InvalidSignature as error:
        if isinstance(error.__cause__, NotEnrolledError):
            raise error.__cause__ from None
        raise AuthenticationError(f"the request's signature does not hold: {_why(error, keys, roster)}") from error
    except HTTPMessageSignaturesException as error:
        raise AuthenticationError(f"the request's signature cannot be read: {error}") from error
    parameters, nonce = results[0].parameters, results[0].nonce
    if len(results) != 1 or nonce is None or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise AuthenticationError(f"one signature with a nonce of {MIN_NONCE} to {MAX_NONCE} characters is needed")
    return str(parameters["keyid"]), nonce


def _why(error: InvalidSignature, keys: _RosterKeys, roster: Roster) -> str:
    """The library's reason, or words for the one that it leaves empty: another key made the signature."""
    if not isinstance(error.__cause__, CryptographicMismatch):
        return str(error)
    return (
        f"it was not made with the key that roster version {roster.version} enrols for {keys.resolved!r}. Use that "
        "key, or let the root enrol the new one; if the key is right, something changed the request on its way"
    )
