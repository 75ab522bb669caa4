"""``fedddpm-aggregator selftest`` and ``drill``: whether this installation can do what it is for, and what it stops."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from fedddpm_aggregator.cli.options import Blobs, DatabaseUrl, settings_of
from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.deployed import check_deployed
from fedddpm_aggregator.selftest.drill.drilling import Outcome, run_drill
from fedddpm_aggregator.selftest.running import run_selftest
from fedddpm_aggregator.selftest.steps import Steps
from fedddpm_aggregator.settings import Settings
from fedddpm_aggregator.telemetry.logs import configure_logging

DataHere = Annotated[
    Path | None,
    typer.Option(help="the aggregator's data directory, if there is one here", envvar="FEDDDPM_AGGREGATOR_DATA"),
]


def selftest_command(
    data: DataHere = None,
    url: Annotated[str | None, typer.Option(help="of a running server that is looked at from outside first")] = None,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """A real round with simulated institutions, one of which drops out, beside the federation's data.

    It takes a schema of its own in the PostgreSQL and a folder of its own in the blob store that are set up here, or
    temporary files, and removes them in the end.
    """
    settings = _set_up(data, database_url, blobs)
    steps = Steps()
    try:
        with _one_line("selftest"):
            if url is not None:
                with steps.step("deployed server") as step:
                    step.result = check_deployed(url, settings.first_name)
            run_selftest(*_storage(settings, data, database_url), steps)
    finally:
        console().print(_table(steps))
    print("selftest passed")


def drill_command(
    data: DataHere = None,
    only: Annotated[list[str] | None, typer.Option(help="name of an attack; several may be given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Known attacks on this installation's own programs: what was tried, who noticed, what leaked.

    Keys, roster and institutions are throwaway ones, and so is the server; it works over a schema and a folder of its
    own, as a selftest does. The status is 1 if anything leaked.
    """
    settings = _set_up(data, database_url, blobs)
    outcomes: list[Outcome] = []
    try:
        with _one_line("drill"):
            run_drill(*_storage(settings, data, database_url), _warn, outcomes.append, only or ())
    finally:
        if as_json:
            print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        else:
            console().print(_attacks(outcomes))
    leaks = [outcome.attack for outcome in outcomes if outcome.leaked]
    if leaks:
        raise SelftestError(f"drill failed: {len(leaks)} of {len(outcomes)} attacks leaked: {', '.join(leaks)}")
    if not as_json:
        print(f"drill passed: {len(outcomes)} attacks, nothing leaked")


def _set_up(data: Path | None, database_url: str | None, blobs: str | None) -> Settings:
    configure_logging("ERROR")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _stopped)
    return settings_of(data or Path(), database_url, {"blobs": blobs})


def _storage(settings: Settings, data: Path | None, database_url: str | None) -> tuple[str | None, str | None]:
    """Database and blob store that are set up here; None: temporary files."""
    here = settings.blobs_url if settings.blobs or (data is not None and data.is_dir()) else None
    return (settings.resolved_database_url if database_url else None), here


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever goes wrong ends as a SelftestError of one line."""
    try:
        yield
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", error)).splitlines()[0]
        raise SelftestError(f"{what} failed: the database cannot be used: {said}") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SelftestError(f"{what} failed: {said}") from error


def _warn(words: str) -> None:
    print(f"warning: {words}", file=sys.stderr)


def _attacks(outcomes: list[Outcome]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("attack", "what was tried", "who noticed", "what leaked"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        table.add_row(outcome.attack, outcome.tried, outcome.noticed, outcome.leaked or "nothing")
    return table


def _table(steps: Steps) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("result", overflow="fold")
    table.add_column("seconds", justify="right")
    for step in steps.done:
        table.add_row(step.name, step.result, f"{step.seconds:.2f}")
    return table


def _stopped(_number: int, _frame: FrameType | None) -> None:
    """Go out through the open contexts, which remove what this test made."""
    raise SystemExit(1)
