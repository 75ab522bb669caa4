"""How the command ends: one message and an exit code, never a trace.

Exit codes: 0 done, 1 a defect, 2 wrong settings, images or model, 3 refused by policy, 4 the aggregator or the way to
it, 5 the state folder, the disk or the training, 130 stopped by hand or by SIGTERM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fedddpm import errors
from fedddpm.errors import FedDDPMError
from fedddpm.monitoring.terminal import PlainConsole
from fedddpm_protocol.untrusted.plain_text import message

# Typer may bring a Click of its own; this is the base of all that its commands raise.
_WRONG_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

STOPPED, STOPPED_CODE = "Stopped. The same command goes on where it was.", 130
_EXIT_CODES: tuple[tuple[type[FedDDPMError], int], ...] = (
    (errors.ConfigError, 2),
    (errors.DataError, 2),
    (errors.ModelError, 2),
    (errors.PolicyError, 3),
    (errors.TransportError, 4),
    (errors.StateError, 5),
    (errors.CheckpointError, 5),
    (errors.TrainingError, 5),
)


def exit_code(error: FedDDPMError) -> int:
    """The code that the command ends with after ``error``."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


class Commands(TyperGroup):
    """Shows errors for users as one message, without a trace."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Read the options before the command."""
        with _plain_usage():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            with _plain_usage():
                return super().invoke(ctx)
        except FedDDPMError as error:
            PlainConsole(stderr=True, soft_wrap=True).print(f"Error: {error}", style="bold red")
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            PlainConsole(stderr=True).print(STOPPED, style="yellow")
            raise typer.Exit(STOPPED_CODE) from None


@contextmanager
def _plain_usage() -> Iterator[None]:
    """What the library says of wrong arguments repeats them, and any of them may be a key."""
    try:
        yield
    except _WRONG_USAGE as error:
        error.message = message(error.message)
        raise
