"""What the aggregator, or the way to it, can answer instead of a result."""

from __future__ import annotations

from fedddpm.errors import StateError, TransportError


class ProblemError(TransportError):
    """A problem document (RFC 9457): ``status`` and the stable ``code`` tell the kind."""

    def __init__(self, happened: str, advice: str = "", *, status: int = 0, code: str = "") -> None:
        super().__init__(happened, advice)
        self.status = status
        self.code = code
        self.retry_after_s = 0.0  # as the aggregator advised

    def __reduce__(self) -> tuple[type[ProblemError], tuple[str, str]]:
        return type(self), (self.happened, self.advice)

    @property
    def moved_on(self) -> bool:
        """Whether the session went on without this request: late, or not yet."""
        return self.code in ("phase-over", "wrong-phase", "not-found") or self.status == 410


class NotEnrolledError(ProblemError):
    """The roster does not hold this institution's key."""


class ClockError(ProblemError):
    """The clocks differ and the one correction did not help."""


class UnreachableError(TransportError):
    """The aggregator did not answer for as long as this institution is willing to wait."""


class SecondClientError(StateError):
    """Somebody else takes part with this institution's identity."""
