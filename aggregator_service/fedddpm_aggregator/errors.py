"""What the aggregator refuses, besides the protocol's own errors.

AggregatorError
├── NotFoundError       no such session, model or result
├── WrongPhaseError     too early for this step
├── PhaseOverError      too late for this step
├── NotYoursError       a message in another member's name
├── UnavailableError    not ready; try again later
├── OperatorError       a mistake of the person at the command line
├── AuditError          the audit log was changed
└── AuthenticationError  who is asking cannot be told
    ├── ClockSkewError      the request's time is too far from the aggregator's
    ├── ReplayedError       the same signed request twice
    └── NotEnrolledError    a key that the roster does not hold
"""

from __future__ import annotations

from typing import ClassVar


class AggregatorError(Exception):
    """Base; ``code`` and ``status`` go into the problem document."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400


class NotFoundError(AggregatorError):
    """Nothing is here under that name."""

    code = "not-found"
    status = 404


class WrongPhaseError(AggregatorError):
    """The session has not come to this step yet."""

    code = "wrong-phase"
    status = 409


class PhaseOverError(AggregatorError):
    """The session is past this step."""

    code = "phase-over"
    status = 410


class NotYoursError(AggregatorError):
    """The message speaks for another member than the one who signed the request."""

    code = "not-yours"
    status = 403


class UnavailableError(AggregatorError):
    """The aggregator cannot serve this now."""

    code = "unavailable"
    status = 503


class OperatorError(AggregatorError):
    """An administrative command that cannot be done as asked; the message says what to do."""

    code = "operator"
    status = 400


class AuditError(AggregatorError):
    """The audit log is not the one that this aggregator wrote; the message names the first broken entry."""

    code = "audit"


class AuthenticationError(AggregatorError):
    """The request's signature is missing or does not hold."""

    code = "unauthenticated"
    status = 401


class ClockSkewError(AuthenticationError):
    """The request was signed at a time too far from the aggregator's."""

    code = "clock-skew"


class ReplayedError(AuthenticationError):
    """The nonce of this request was seen before."""

    code = "replayed"


class NotEnrolledError(AuthenticationError):
    """The key id is no member of the newest roster."""

    code = "not-enrolled"
    status = 403
