"""What the command says of wrong arguments: it repeats them, and any of them may be a key in the wrong place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fedddpm_protocol.foreign.showing import message

# Typer may bring a Click of its own; this is the base of all that its commands raise.
_WRONG_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Commands(TyperGroup):
    """A command of commands whose usage errors are plain and hold no key."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Read the options before the command."""
        with _plain_usage():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, of this level or a lower one."""
        with _plain_usage():
            return super().invoke(ctx)


@contextmanager
def _plain_usage() -> Iterator[None]:
    try:
        yield
    except _WRONG_USAGE as error:
        error.message = message(error.message)
        raise
