"""What the user sees: one live line on a terminal, a line of the log for each event elsewhere."""

import io
import logging

import pytest
from rich.console import Console

from fedddpm.monitoring import reporter as progress_module
from fedddpm.monitoring.reporter import Reporter, TerminalReporter, make_reporter
from fedddpm.training.settings import Progress
from fedddpm.transport.connection import Outage


def tell_everything(reporter):
    with reporter:
        reporter.notice("round 1: done")
        reporter.warning("the clock is wrong")
        reporter.waiting("waiting for the others")
        for step in (1, 2, 3):
            reporter.training(0, Progress(0, 1, step, 3, 0.25, 100.0))
        reporter.transfer("uploading decoder", 1, 4)
        reporter.transfer("downloading the first model", 500_000, 0)
        reporter.outage(Outage("connection refused", 3.0, 1.0))
        reporter.outage(Outage("connection refused", 9.0, 1.0))
        reporter.outage(None)


def test_a_terminal_shows_what_is_going_on():
    screen = io.StringIO()
    tell_everything(TerminalReporter(Console(file=screen, force_terminal=True, width=150)))
    shown = screen.getvalue()
    for text in (
        "round 1: done",
        "Warning: the clock is wrong",
        "waiting for the others",
        "round 1: training, epoch 1 of 1",
        "loss 0.2500, 100 images/s",
        "uploading decoder",
        "0.5 MB",
        "aggregator away for 9 s, next try in 1 s",
        "the aggregator answers again",
    ):
        assert text in shown
    assert shown.count("does not serve (connection refused)") == 1  # an outage is announced once


def test_elsewhere_every_event_is_a_line_of_the_log(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        reporter = Reporter()
        tell_everything(reporter)
        for text in ("waiting for the others", "waiting for the result", "waiting for the result"):
            reporter.waiting(text)
    assert [record.message for record in caplog.records] == [
        "round 1: done",
        "the clock is wrong",
        "waiting for the others",
        "the aggregator does not serve (connection refused); waiting for it, nothing is lost",
        "the aggregator answers again",
        "waiting for the result",
    ]
    assert capsys.readouterr() == ("", "")


def test_a_long_training_is_heard_of_every_half_a_minute(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    reporter = Reporter()
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        for step in range(1, 9):
            reporter.training(2, Progress(0, 4, step, 8, 0.25, 100.0))
            now[0] += 10
    assert [record.message for record in caplog.records] == [
        f"round 3: training, epoch 1 of 4, step {step} of 8, loss 0.2500, 100 images/s" for step in (4, 7)
    ]


@pytest.mark.parametrize(("show", "kind"), [(True, TerminalReporter), (False, Reporter), (None, Reporter)])
def test_bars_are_drawn_on_a_terminal_or_when_asked_for(show, kind):
    assert type(make_reporter(show)) is kind  # under pytest there is no terminal
