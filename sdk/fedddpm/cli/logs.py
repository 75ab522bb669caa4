"""The command's log on stderr: lines for people, or one JSON object a line for programs.

A line says what happened to this institution and nothing that is secret: no key, no share, no word of an update. Each
event is one line, whatever the text in it holds; only a trace has more, each with a mark in front.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from fedddpm_protocol.untrusted.plain_text import plain, plain_lines, plain_values

LOG = logging.getLogger("fedddpm")
Format = Literal["text", "json", "none"]
_OTHERS = "py.warnings"  # where Python's own warnings go


class TextFormatter(logging.Formatter):
    """Time, what kind of line if it is no ordinary one, and the text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(kind)s%(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        record.kind = {logging.WARNING: "Warning: ", logging.ERROR: "Error: "}.get(record.levelno, "")
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without its trace."""
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The trace."""
        return plain_lines(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, event, message, what the line is about (run, round, attempt), and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.levelname.lower()),
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        told = {plain(name): plain_values(value) for name, value in line.items()}
        if record.exc_info and record.exc_info[1] is not None:
            told["traceback"] = plain_lines(_traceback(record.exc_info[1]))
        return json.dumps(told)


@contextmanager
def log_on_stderr(form: Format) -> Iterator[None]:
    """Where no bars are drawn every event is a line with the time: a log shows how far it is. ``none``: no lines.

    Python's own warnings are lines of JSON too, so that each line can be read by a program.
    """
    handler = logging.NullHandler() if form == "none" else logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    told = [LOG, logging.getLogger(_OTHERS)] if form == "json" else [LOG]
    level = LOG.level
    for logger in told:
        logger.addHandler(handler)
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(form == "json")
    try:
        yield
    finally:
        logging.captureWarnings(False)
        LOG.setLevel(level)
        for logger in told:
            logger.removeHandler(handler)


def _traceback(error: BaseException) -> str:
    """As Python prints it, but without what a validation refused: that may be somebody's message."""
    said = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
    return "".join([*traceback.format_tb(error.__traceback__), f"{type(error).__name__}: {said}"])
