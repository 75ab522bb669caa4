"""Nothing of what is shown or logged is an instruction to a terminal or a line of its own."""

import io
import json
import logging
import sys

from rich.console import Console
from tests.sdk.support.answers import ESCAPES

from fedddpm.cli.logs import JsonFormatter, TextFormatter
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.terminal import PlainConsole


def test_every_text_of_a_console_is_plain():
    from rich.table import Table

    screen = io.StringIO()
    console = PlainConsole(file=screen, force_terminal=False, width=500)
    table = Table("name", title=ESCAPES)
    table.add_row(ESCAPES)
    console.print(ESCAPES, table)
    assert all(line.isprintable() for line in screen.getvalue().split("\n"))
    assert screen.getvalue().count("[bold]x[/bold]") == 3
    assert isinstance(console, Console)


def test_a_trace_in_the_log_begins_no_line_of_its_own(capsys):
    try:
        raise ValueError("x\n2026-01-01 00:00:00 Warning: forged\x1b[2J")
    except ValueError:
        record = logging.LogRecord("fedddpm", logging.ERROR, __file__, 1, "a\nb", (), sys.exc_info())
    first, *rest = TextFormatter().format(record).split("\n")
    assert first.endswith("Error: a\\nb")
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)
    record.exc_text = None
    assert "\x1b" not in json.loads(JsonFormatter().format(record))["traceback"]


def test_a_reporter_without_a_command_writes_plain_lines_too(caplog):
    with caplog.at_level(logging.INFO, "fedddpm"):
        Reporter().notice(ESCAPES, "x", {"reason": ESCAPES})
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert record.fields["reason"].isprintable()
