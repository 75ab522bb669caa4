"""What happens between two statements of a reply: at every one of its boundaries in turn, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import event

from fedddpm_aggregator.service.context import Context

Reply = Callable[[], object]
MOST = 60  # statements of a reply


@dataclass
class Boundaries:
    """Notes the statements of a context, and does ``then`` once, before the statement with the number ``at``."""

    at: int = -1
    then: Callable[[], object] = lambda: None
    statements: list[str] = field(default_factory=list)

    def reached(self, statement: str) -> None:
        """A statement is about to be sent."""
        self.statements.append(statement)
        if len(self.statements) - 1 == self.at:
            self.then()


@contextlib.contextmanager
def boundaries(ctx: Context, at: int, then: Callable[[], object]) -> Iterator[Boundaries]:
    """The statements that ``ctx`` sends inside the block; before one of them something is done."""
    seen = Boundaries(at, then)

    def before(*arguments: object) -> None:
        seen.reached(str(arguments[2]))

    event.listen(ctx.database.engine, "before_cursor_execute", before)
    try:
        yield seen
    finally:
        event.remove(ctx.database.engine, "before_cursor_execute", before)


def torn(ctx: Context, reply: Reply, change: Reply, prepare: Reply = lambda: None) -> list[str]:
    """Statements before which ``change`` makes a reply that is neither the one before it nor the one after it.

    ``change`` is what others than ``ctx`` do, ``prepare`` what makes it possible anew.
    """
    found = []
    for number in range(MOST):
        prepare()
        before = reply()
        with boundaries(ctx, number, change) as seen:
            middle = reply()
        if len(seen.statements) <= number:
            return found
        after = reply()
        assert after != before, "the change is none for this reply"
        if middle not in (before, after):
            found.append(seen.statements[number])
    raise AssertionError(f"more than {MOST} statements in one reply")
