"""Who gets in: rates by address, the server's name, signatures, rates by identity.

The guard asks once it has checked the size of the head, and before it reads a body.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Scope

from fedddpm_aggregator.errors import MisdirectedError, NotEnrolledError, NotOperatorError, TooManyRequestsError
from fedddpm_aggregator.http.authentication import SIGNER, SignedHead, Signer, accept, identify
from fedddpm_aggregator.http.rate_limits import Rate, TokenBuckets, address_key
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import Settings

SIGNED = "/v1/"  # paths that ask for a signature
OPERATORS = "/v1/operator/"  # paths for operators and nobody else
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Rules:
    """What :class:`Admission` asks for; no ``authorities`` mean any."""

    per_address: Rate
    per_identity: Rate
    authorities: frozenset[str] = frozenset()


def rules_of(settings: Settings) -> Rules:
    """The rules that an operator has set."""
    per_address = Rate(settings.rate_per_address, settings.burst_per_address)
    return Rules(per_address, Rate(settings.rate_per_identity, settings.burst_per_identity), settings.names)


class Admission:
    """Checks the head of every request."""

    def __init__(self, rules: Rules) -> None:
        self._authorities = rules.authorities
        self._addresses, self._identities = TokenBuckets(rules.per_address), TokenBuckets(rules.per_identity)

    async def __call__(self, scope: Scope) -> str:
        """Let a request in, note its signer in the scope and name it (empty: unsigned), or raise an AggregatorError."""
        client = scope.get("client")
        wait_s = self._addresses.take(address_key(client[0] if client else ""))
        if wait_s:
            raise TooManyRequestsError("too many requests from this address; ask less often", wait_s)
        if not scope["path"].startswith(SIGNED):
            return ""
        self._check_authority(scope)
        ctx: Context = scope["app"].state.context
        ctx.schema.require_open()
        signer: Signer = await run_in_threadpool(self._admit, ctx, scope)
        scope[SIGNER] = signer
        return signer.name

    def _check_authority(self, scope: Scope) -> None:
        host = Headers(scope=scope).get("host", "").lower().removesuffix(_DEFAULT_PORTS.get(scope["scheme"], "none"))
        if self._authorities and host not in self._authorities:
            ours = ", ".join(sorted(self._authorities))
            raise MisdirectedError(f"this server is not {host!r}; it answers requests that are signed for {ours}")

    def _admit(self, ctx: Context, scope: Scope) -> Signer:
        head, for_operators = head_of(scope), scope["path"].startswith(OPERATORS)
        try:
            signer = identify(ctx, head)
        except NotEnrolledError as error:
            raise NotOperatorError(str(error)) if for_operators else error from None
        wait_s = self._identities.take(signer.name)
        if wait_s:
            raise TooManyRequestsError(f"too many requests by {signer.name!r}; ask less often", wait_s)
        if for_operators and not signer.is_operator:
            self._record(ctx, signer, scope)
            raise NotOperatorError(f"{signer.name!r} is a member, and this is for operators that the root has named")
        if signer.is_operator and not for_operators:
            raise NotEnrolledError(f"{signer.name!r} is an operator and no member; it takes no part in rounds")
        if _has_body(scope):
            return signer
        accept(ctx, signer, b"")
        return replace(signer, accepted=True)

    def _record(self, ctx: Context, signer: Signer, scope: Scope) -> None:
        with ctx.transaction() as db:
            request = {"method": scope["method"], "path": scope["path"], "code": NotOperatorError.code}
            audit.record_refusal(ctx, db, f"member:{signer.name}", **request)


def head_of(scope: Scope) -> SignedHead:
    """What the signature of a request covers besides the body."""
    target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
    headers = Headers(scope=scope)
    return SignedHead(scope["method"], f"{scope['scheme']}://{headers.get('host', '')}{target}{query}", headers)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
