"""``fedddpm-aggregator verify``: the whole history, recomputed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedddpm_aggregator.cli.options import Blobs, Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli.round_tables import PlainConsole, console
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.security.key_files import read_public_key
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.verification.verify_history import attempts_in, verify_history


def verify_command(
    data: Data,
    root_key: Annotated[
        str | None,
        typer.Option(
            help="the federation's root public key, 64 hex digits or a file of them; it must be the pinned one",
            envvar="FEDDDPM_AGGREGATOR_ROOT_KEY",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Recompute every hash, signature and model of the history; names the first that does not hold."""
    root = read_public_key(root_key) if root_key is not None else None
    with opened(settings_of(data, database_url, {"blobs": blobs})) as ctx:
        try:
            counts = _verify(ctx, root, quiet=as_json)
        except HistoryError as error:
            if not as_json:
                raise
            print(json.dumps({"intact": False, "broken": str(error)}, indent=2))
            raise SystemExit(1) from error
    if as_json:
        print(json.dumps({"intact": True, "checked": dict(counts)}, indent=2))
    else:
        console().print(_table(counts))


def _verify(ctx: Context, root: bytes | None, quiet: bool) -> Counter[str]:
    if quiet:
        return verify_history(ctx, root)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as progress:
        task = progress.add_task("rosters", total=attempts_in(ctx))
        return verify_history(ctx, root, lambda place: progress.update(task, description=place, advance=1))


def _table(counts: Counter[str]) -> Table:
    """What was checked; what retention removed stands apart."""
    table = Table(title="the history is intact", box=box.SIMPLE)
    table.add_column("checked")
    table.add_column("count", justify="right")
    for what, count in counts.items():
        table.add_row(what, f"{count:,}", style="dim" if "retention" in what else None)
    return table
