"""What the service needs of a tracer; this one does nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Tracer(Protocol):
    """Makes spans of a trace. Attributes are what stands on every line of the log, see ``telemetry.logs``."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Time what is done inside."""

    def annotate(self) -> None:
        """Put what is noted onto the request's span."""

    def quiet(self) -> AbstractContextManager[object]:
        """No spans of what is done inside."""

    def close(self) -> None:
        """Send what is left, for a bounded time."""


class NoTracer:
    """Traces nothing."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext(name)

    def annotate(self) -> None:
        """Nothing."""

    def quiet(self) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext()

    def close(self) -> None:
        """Nothing."""
