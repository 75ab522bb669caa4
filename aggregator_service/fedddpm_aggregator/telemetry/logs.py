"""Logs as one JSON object a line. Fields are named by the caller; bodies, keys and headers are never logged.

Every text in a line is plain (see ``fedddpm_protocol.untrusted.plain_text``), also when a program unpacks the JSON.
What a request or a job is about (request, run, round, session) is noted once and stands on every line until it ends.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from fedddpm_protocol.untrusted.plain_text import plain, plain_lines, plain_values

_DETAIL = re.compile(r"^DETAIL:.*$", re.MULTILINE)  # PostgreSQL shows the row that it refused
OWN_LOGGERS = ("fedddpm_aggregator", "fedddpm_protocol")
_NOTED: ContextVar[dict[str, object] | None] = ContextVar("fedddpm_noted", default=None)


@contextmanager
def noting(**fields: object) -> Iterator[dict[str, object]]:
    """Lines inside carry ``fields``, those noted around it, and what is noted inside; threads of a request too."""
    held = {**(_NOTED.get() or {}), **fields}
    token = _NOTED.set(held)
    try:
        yield held
    finally:
        _NOTED.reset(token)


def note(**fields: object) -> None:
    """From here on the lines of this request or job carry ``fields`` too; outside of :func:`noting` nothing happens."""
    held = _NOTED.get()
    if held is not None:
        held.update(fields)


def noted() -> dict[str, object]:
    """What stands on every line now."""
    return dict(_NOTED.get() or {})


class JsonFormatter(logging.Formatter):
    """One line of JSON: time, level, logger, message, what is noted, the record's ``fields``, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **noted(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        told = {plain(name): plain_values(value) for name, value in line.items()}
        if record.exc_info and record.exc_info[1] is not None:
            told["traceback"] = plain_lines("".join(_traceback(record.exc_info[1])))
        return json.dumps(told)


def configure_logging(level: str = "INFO") -> None:
    """Send all logs to standard error as JSON lines.

    ``level`` is that of this program. Libraries tell of warnings only: at DEBUG some of them show whole messages, such
    as the rows of a query.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)


def _traceback(error: BaseException, depth: int = 0) -> Iterator[str]:
    """As Python prints it, but without what a validation refused: that may be a message of an institution."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and depth < 8:
        yield from _traceback(before, depth + 1)
        yield "\nThen:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}: {_message(error)}\n"
    if isinstance(error, BaseExceptionGroup) and depth < 8:
        for inner in error.exceptions:
            yield from _traceback(inner, depth + 1)


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        places = error.errors(include_input=False, include_url=False, include_context=False)
    elif isinstance(error, RequestValidationError):
        places = list(error.errors())
    else:
        return _DETAIL.sub("DETAIL: (left out)", str(error))
    return "; ".join(f"{'.'.join(map(str, place['loc']))}: {place['type']}" for place in places)
