"""How the command ends: 0 done, 1 what a user can mend, told in one line, 2 wrong arguments; a trace is a defect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from typer.core import TyperGroup

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError, StorageFullError
from fedddpm_aggregator.errors import AggregatorError
from fedddpm_aggregator.security.key_files import KeyFileError
from fedddpm_aggregator.security.setting_errors import first_error
from fedddpm_aggregator.settings import PREFIX, Settings
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.untrusted.plain_text import message
from fedddpm_protocol.untrusted.redaction import shown

_STORAGE = (StorageFullError, BlobsUnavailableError, BlobSettingsError)
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line and status 1 where what it met is no defect of this program."""
    try:
        yield
    except (AggregatorError, KeyFileError, ProtocolError, *_STORAGE) as error:
        _die(str(error))
    except ValidationError as error:
        _die(first_error(error, Settings.__name__, PREFIX))
    except SQLAlchemyError as error:
        _die(f"the database cannot be used: {str(getattr(error, 'orig', error)).splitlines()[0]}")
    except OSError as error:
        _die(f"{shown(str(error.filename)) if error.filename else 'the system'}: {error.strerror or error}")


def _die(what: str) -> None:
    print(f"error: {message(what)}", file=sys.stderr)
    raise SystemExit(1)
