"""``fedddpm-aggregator selftest``: whether this installation can do what it is for."""

from __future__ import annotations

import logging
import signal
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
from fedddpm_aggregator.selftest.running import run_selftest
from fedddpm_aggregator.selftest.steps import Steps
from fedddpm_aggregator.telemetry.logs import configure_logging


def selftest_command(
    data: Annotated[
        Path | None,
        typer.Option(help="the aggregator's data directory, if there is one here", envvar="FEDDDPM_AGGREGATOR_DATA"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="of a running server that is looked at from outside first")] = None,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """A real round with simulated institutions, one of which drops out, beside the federation's data.

    It takes a schema of its own in the PostgreSQL and a folder of its own in the blob store that are set up here, or
    temporary files, and removes them in the end.
    """
    configure_logging("ERROR")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _stopped)
    settings = settings_of(data or Path(), database_url, {"blobs": blobs})
    here = settings.blobs_url if settings.blobs or (data is not None and data.is_dir()) else None
    steps = Steps()
    try:
        if url is not None:
            with steps.step("deployed server") as step:
                step.result = check_deployed(url, settings.first_name)
        run_selftest(settings.resolved_database_url if database_url else None, here, steps)
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", error)).splitlines()[0]
        raise SelftestError(f"selftest failed: the database cannot be used: {said}") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SelftestError(f"selftest failed: {said}") from error
    finally:
        console().print(_table(steps))
    print("selftest passed")


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
