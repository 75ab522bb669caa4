"""What the aggregator, or the way to it, can answer instead of a result."""

from __future__ import annotations

from pydantic import ValidationError

from fedddpm.errors import StateError, TransportError
from fedddpm_protocol.untrusted.bounds import bound_of
from fedddpm_protocol.wire.api import Problem

CLOCK_ADVICE = "Set this machine's clock (for instance: timedatectl set-ntp true)"


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
        """Whether the session goes on without this request: late, not yet, or not from this institution."""
        return self.code in ("phase-over", "wrong-phase", "not-found", "excluded") or self.status == 410


class NotEnrolledError(ProblemError):
    """The roster does not hold this institution's key."""


class ClockError(ProblemError):
    """The clocks differ and the one correction did not help."""


class UnreachableError(TransportError):
    """The aggregator did not answer for as long as this institution is willing to wait."""


class SecondClientError(StateError):
    """Somebody else takes part with this institution's identity."""


def read_problem(content: bytes) -> Problem | None:
    """The problem document in a reply's body; None if it is none."""
    if not bound_of(Problem).holds(content):
        return None
    try:
        return Problem.model_validate_json(content)
    except ValidationError:
        return None


def problem_error(problem: Problem | None, url: str, status: int, who: str) -> ProblemError:
    """The error for a reply of ``status``; ``who`` names this institution and its key."""
    if problem is None:
        return ProblemError(
            f"{url} answered {status} without saying why",
            "Check that aggregator_url is the address of a fedddpm aggregator, not of a proxy's error page",
            status=status,
        )
    detail, code = problem.detail or problem.title, problem.code
    if code in ("not-enrolled", "unauthenticated"):
        return NotEnrolledError(
            f"the aggregator does not know {who} ({detail})",
            "Call the federation's coordinator, read out this fingerprint and ask for a new signed roster;"
            " if the id is another one, set member_id",
            status=status,
            code=code,
        )
    if code == "clock-skew":
        return ClockError("the aggregator refuses this machine's clock", CLOCK_ADVICE, status=status, code=code)
    if status == 404 and detail == "Not Found":  # no endpoint at all; what an endpoint misses it calls by name
        return ProblemError(
            f"{url} is no address of the aggregator",
            "Check aggregator_url: it ends with the host and port, or with the path that a proxy puts before /v1",
            status=status,
            code=code,
        )
    advice = "The aggregator's disk is full; its operator must free space" if code == "storage-full" else ""
    return ProblemError(f"the aggregator refused: {detail}", advice, status=status, code=code)
