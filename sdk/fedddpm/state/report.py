"""A look into a state folder without its lock, also while another process works with it."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedddpm.errors import StateError

OWN_SHARE = "own-share"  # the fact that holds the newest share of the own update
ALARMS = "alarms"  # the fact that holds what alarms need of the newest results


@dataclass(frozen=True)
class RunReport:
    """One run as this institution knows it."""

    run: str
    method: str
    next_round: int
    finished: bool
    model: Path
    rounds: int  # in which it sent an update
    parameters_up: int
    parameters_down: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class StateReport:
    """What is known without asking the aggregator."""

    member_id: str
    roster_version: int
    unacknowledged: int  # answers that the aggregator has not acknowledged yet
    runs: tuple[RunReport, ...]  # the one worked on last comes last
    own_share: bytes | None  # of the newest round in which it is known
    alarms: bytes | None  # what they need of the newest results, and which rang


def read_state(folder: Path) -> StateReport:
    """Read the report; StateError if there is no state folder, or nothing in it yet."""
    with read_only(folder) as db:
        try:
            facts = dict(db.execute("SELECT name, value FROM facts").fetchall())
            owed = db.execute("SELECT COUNT(*) FROM spent WHERE acknowledged = 0").fetchone()[0]
            rows = db.execute(
                "SELECT runs.run, method, next_round, finished, model_file,"
                " COUNT(DISTINCT CASE WHEN parameters_up > 0 THEN round END), COALESCE(SUM(parameters_up), 0),"
                " COALESCE(SUM(parameters_down), 0), COALESCE(SUM(bytes_up), 0), COALESCE(SUM(bytes_down), 0)"
                " FROM runs LEFT JOIN traffic ON traffic.run = runs.run GROUP BY runs.run"
            ).fetchall()
        except sqlite3.Error as error:
            raise no_state(folder) from error
    newest = facts.get("newest-run", b"").decode()
    reports = [RunReport(row[0], row[1], row[2], bool(row[3]), folder / row[4], *row[5:]) for row in rows]
    return StateReport(
        member_id=facts.get("member", b"").decode(),
        roster_version=int(facts.get("roster-version", b"0")),
        unacknowledged=owed,
        runs=tuple(sorted(reports, key=lambda report: report.run == newest)),
        own_share=facts.get(OWN_SHARE),
        alarms=facts.get(ALARMS),
    )


def parameters_in(model: Path) -> int | None:
    """How many parameters a model file holds, from its header alone; None where it is missing or damaged."""
    try:
        with safe_open(model, framework="numpy") as file:
            shapes: list[list[int]] = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return sum(math.prod(shape) for shape in shapes)


def read_facts(folder: Path) -> dict[str, bytes]:
    """All single values of a state folder; StateError if there is none, or nothing in it yet."""
    with read_only(folder) as db:
        try:
            return dict(db.execute("SELECT name, value FROM facts").fetchall())
        except sqlite3.Error as error:
            raise no_state(folder) from error


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database of a state folder, to look at only; StateError if there is none."""
    path = folder / "state.sqlite"
    if not path.is_file():
        raise no_state(folder)
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise no_state(folder) from error
    try:
        yield db
    finally:
        db.close()


def no_state(folder: Path) -> StateError:
    """Where a folder was given that no institution has worked with."""
    return StateError(f"{folder} holds no state of an institution", "Give the state_dir of fedddpm participate")
