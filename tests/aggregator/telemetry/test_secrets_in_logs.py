"""A failing database shows no message of an institution in the log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.http import problems

SHARE = "5f" * 32


@pytest.mark.parametrize("door", ["write", "write_relaxed"])
def test_a_database_error_is_logged_without_its_parameters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, door: str
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'db.sqlite'}")
    with pytest.raises(OperationalError) as failure, getattr(database, door)() as db:
        db.execute(text("INSERT INTO absent VALUES (:body)"), {"body": SHARE})
    database.close()
    with caplog.at_level(logging.ERROR):
        assert problems.problem_of(failure.value).status_code == 503
    assert "no such table" in caplog.text
    assert SHARE not in caplog.text
