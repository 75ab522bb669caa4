"""The command's log: lines for people, objects for programs, and nothing else in between."""

import json
import logging
import warnings

import pytest
from pydantic import BaseModel

from fedddpm.cli.logs import LOG, log_on_stderr
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity


def tell(reporter):
    reporter.notice("before any round", "started", {"version": "1"})
    reporter.at("run-1", 0, 1)
    reporter.warning('with "quotes"\nand a line break')
    reporter.reached(Activity.JOINED, "joined", {"part": "decoder"})


def test_text_has_the_time_and_marks_what_needs_attention(capsys):
    with log_on_stderr("text"):
        tell(Reporter())
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first[19:] == " before any round"
    assert second[19:] == ' Warning: with "quotes"\\nand a line break', "one event, one line"


def test_json_has_an_object_a_line_with_what_it_is_about(capsys):
    with log_on_stderr("json"):
        tell(Reporter())
        with warnings.catch_warnings(action="always"):
            warnings.warn("of some library", stacklevel=1)
        LOG.getChild("image_cache").warning("of a module")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("info", "started"),
        ("warning", "warning"),
        ("info", "joined"),
        ("warning", "warning"),
        ("warning", "warning"),
    ]
    assert "round" not in lines[0]
    assert lines[2] | {"run": "run-1", "round": 0, "attempt": 1, "part": "decoder", "message": "joined"} == lines[2]
    assert "of some library" in lines[3]["message"]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_bars_leave_the_screen_alone(capsys):
    with log_on_stderr("none"):
        tell(Reporter())
    assert capsys.readouterr().err == ""
    assert LOG.handlers == []


def test_a_defect_is_one_line_without_what_a_validation_refused(capsys):
    class Message(BaseModel):
        number: int

    received = {"number": "-".join(["a", "masked", "value"])}  # so that it stands in no line of this file
    with log_on_stderr("json"):
        try:
            Message.model_validate(received)
        except ValueError as error:
            LOG.critical("a defect", exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    assert "a-masked-value" not in line
    assert json.loads(line)["traceback"].endswith("ValidationError: 1 fields are wrong")


def test_others_arriving_one_by_one_are_few_lines(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fedddpm.monitoring.reporter.time.monotonic", lambda: now[0])
    reporter = Reporter()
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        for done in range(10):
            reporter.waiting(f"waiting (join, {done} done)", key="join")
            now[0] += 10
        reporter.waiting("waiting (shares, 0 done)", key="shares")
    assert [record.message for record in caplog.records] == [
        *(f"waiting (join, {done} done)" for done in (0, 3, 6, 9)),
        "waiting (shares, 0 done)",
    ]


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_the_program_that_uses_the_library_keeps_its_level(level):
    before = LOG.level
    LOG.setLevel(level)
    with log_on_stderr("text"):
        assert LOG.level == logging.INFO
    assert LOG.level == level
    LOG.setLevel(before)
