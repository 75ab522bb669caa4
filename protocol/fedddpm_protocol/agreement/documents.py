"""Specifications and results as signed documents: the aggregator signs, everybody else verifies."""

from __future__ import annotations

from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import largest_cohort, most_redraws
from fedddpm_protocol.agreement.spec import HIDDEN, RoundSpec
from fedddpm_protocol.errors import (
    MalformedError,
    OtherVersionError,
    ResultError,
    SignatureError,
    SpecError,
    StaleRosterError,
    StaleSpecError,
)
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.canonical import PROTOCOL
from fedddpm_protocol.wire.messages import SignedDocument

_FAMILY = "fedddpm/sa/"  # how every version of the protocol is called


def version_of(body: bytes) -> str:
    """The version of the protocol that the bytes of a specification or result name; empty if they name none."""
    try:
        name = canonical.unlp(body)[0].decode()
    except (MalformedError, IndexError, UnicodeDecodeError):
        return ""
    return name if name.startswith(_FAMILY) else ""


def sign_spec(spec: RoundSpec, server: keys.SigningKey) -> SignedDocument:
    """The aggregator's signature over a round specification."""
    body = canonical.encode(spec)
    return SignedDocument(body=body, signature=server.sign("spec", body))


def open_spec(signed: SignedDocument, roster: Roster) -> RoundSpec:
    """A specification signed by the roster's aggregator and made for this very roster.

    What an institution is willing to do is its own affair: see ``LocalPolicy.check``.

    Raises:
        OtherVersionError: it is of another version of the protocol.
        SignatureError: another key signed it.
        StaleRosterError: it was made for a newer roster; StaleSpecError: for an older one.
        SpecError: its form or its federation is wrong, or it is not what follows from the roster.
    """
    _verify_server(signed, roster, "spec")
    try:
        spec = canonical.decode(RoundSpec, signed.body)
    except MalformedError as error:
        raise SpecError(f"the round specification is not valid: {error}", "aggregator") from error
    if spec.federation != roster.federation:
        raise SpecError(f"the round belongs to federation {spec.federation!r}, not {roster.federation!r}", "aggregator")
    _require_roster(spec, roster)
    if not spec.terms_hash:
        raise SpecError("the round specification does not name its terms; the aggregator is of an older release")
    if spec.weighting == HIDDEN and most_redraws(roster):
        raise SpecError(
            "the round hides sample counts in sums of groups that are drawn anew, which reveal them to whoever adds and"
            " subtracts them; the coordinator must run it with equal weights",
            "aggregator",
        )
    if spec.largest_cohort > largest_cohort(roster):
        raise SpecError(
            f"the round makes room for {spec.largest_cohort} institutions in a sum, where the roster allows for"
            f" {largest_cohort(roster)}: rounding would be coarser than it has to be",
            "aggregator",
        )
    return spec


def _require_roster(spec: RoundSpec, roster: Roster) -> None:
    if spec.roster_version != roster.version:
        mismatch = StaleRosterError if spec.roster_version > roster.version else StaleSpecError
        raise mismatch(
            f"the round was made for roster version {spec.roster_version}, you hold version {roster.version}",
            "aggregator",
        )
    if spec.roster_hash != roster.hash:
        raise SpecError(f"the round was made for another roster of version {roster.version} than yours", "aggregator")


def sign_result(result: RoundResult, server: keys.SigningKey) -> SignedDocument:
    """The aggregator's signature over a round's result."""
    body = canonical.encode(result)
    return SignedDocument(body=body, signature=server.sign("result", body))


def open_result(signed: SignedDocument, roster: Roster) -> RoundResult:
    """A result signed by the roster's aggregator; OtherVersionError, SignatureError or ResultError."""
    _verify_server(signed, roster, "result")
    try:
        result = canonical.decode(RoundResult, signed.body)
    except MalformedError as error:
        raise ResultError(f"the signed result is not valid: {error}", "aggregator") from error
    if result.federation != roster.federation:
        raise ResultError(f"the result belongs to federation {result.federation!r}", "aggregator")
    return result


def _verify_server(signed: SignedDocument, roster: Roster, tag: str) -> None:
    version = version_of(signed.body)
    if version not in ("", PROTOCOL):  # said before the signature, which is over this version's label and cannot hold
        raise OtherVersionError(
            f"the {tag} is of {version}, and this release speaks {PROTOCOL}: institutions and aggregator must be of "
            "one version, and a run is finished before they are updated",
            "aggregator",
        )
    try:
        keys.verify(roster.server_public_key, tag, signed.body, signed.signature, "aggregator")
    except SignatureError as error:
        raise SignatureError(
            f"the {tag} is not signed by the aggregator that the roster names", "aggregator"
        ) from error
