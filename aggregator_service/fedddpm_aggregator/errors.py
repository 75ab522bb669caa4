"""What the aggregator refuses, besides the protocol's own errors.

    AggregatorError
    ├── NotFoundError           no such session, model or result
    ├── RemovedError            a model or an opened sum that is kept no longer
    ├── WrongPhaseError         too early for this step
    ├── PhaseOverError          too late for this step
    ├── NotYoursError           a message in another member's name
    ├── ExcludedError           a member that evidence convicts, for the time being
    ├── UnavailableError        not ready; try again later
    ├── TooManyRequestsError    slower, please
    ├── TooLargeError           a body of more bytes than are read
    ├── HeadTooLargeError       too many headers, or too long ones
    ├── TargetTooLongError      path and query are too long
    ├── MisdirectedError        signed for another server
    ├── PageRefusedError        the page is not shown to this request
    ├── OperatorError           a mistake of the coordinator or operator
    │   ├── OperatorConflictError   it was done before, in another way
    │   └── OlderInForceError       a roster or charter below the one in force
    ├── AuditError              the audit log was changed
    ├── HistoryError            the history is not what was signed and summed
    ├── SelftestError           this installation cannot do what it is for
    └── AuthenticationError     who is asking cannot be told
        ├── ClockSkewError          the request's time is too far from the aggregator's
        ├── ReplayedError           the same signed request twice
        ├── NotEnrolledError        a key that the roster does not hold
        └── NotOperatorError        an operator's request by somebody else

Files of keys and blobs have errors of their own (``security``, ``blobs.interface``): they know nothing of requests.
"""

from __future__ import annotations

import math
from typing import ClassVar

from fedddpm_protocol.untrusted.plain_text import plain


class AggregatorError(Exception):
    """Base; ``code`` and ``status`` go into the problem document. The text is made plain: it may repeat a request."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400
    retry_after_s: int | None = None  # seconds after which the same request may be answered

    def __init__(self, text: str = "") -> None:
        super().__init__(plain(text))


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


class ExcludedError(AggregatorError):
    """The member was convicted of wrong shares and is not admitted for the time being."""

    code = "excluded"
    status = 403


class UnavailableError(AggregatorError):
    """The aggregator cannot serve this now."""

    code = "unavailable"
    status = 503
    retry_after_s = 5


class OperatorError(AggregatorError):
    """An administrative command that cannot be done as asked; the message says what to do."""

    code = "operator"
    status = 409


class OperatorConflictError(OperatorError):
    """Something else is there under that name."""

    code = "conflict"


class OlderInForceError(OperatorError):
    """A roster or charter of a lower version or number than the one in force."""


class TooManyRequestsError(AggregatorError):
    """Somebody asks too often."""

    code = "too-many-requests"
    status = 429

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(wait_s))


class MisdirectedError(AggregatorError):
    """The request was made, and signed, for a server of another name."""

    code = "misdirected"
    status = 421


class AuditError(AggregatorError):
    """The audit log is not the one that this aggregator wrote; the message names the first broken entry."""

    code = "audit"


class SelftestError(AggregatorError):
    """This installation does not do what it should; the message names the first thing that is wrong."""

    code = "selftest"


class HistoryError(AggregatorError):
    """The history is not what was signed and summed; the message names the first thing that does not hold."""

    code = "history"


class RemovedError(AggregatorError):
    """A model or an opened sum that the aggregator keeps no longer."""

    code = "removed"
    status = 410


class PageRefusedError(AggregatorError):
    """The page is not shown to this request. Each refusal has a status, a code and headers of its own."""

    def __init__(self, status_: int, code_: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.http_status, self.problem_code, self.headers = status_, code_, headers


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


class NotOperatorError(AuthenticationError):
    """The key is none of an operator that the newest roster names."""

    code = "not-operator"
    status = 403


class TooLargeError(AggregatorError):
    """The request's body is larger than the server reads."""

    code = "too-large"
    status = 413


class HeadTooLargeError(AggregatorError):
    """The request has too many headers, or too long ones."""

    code = "headers-too-large"
    status = 431


class TargetTooLongError(AggregatorError):
    """The request's path and query are too long."""

    code = "target-too-long"
    status = 414
