"""The command ``fedddpm approve``: show the newest charter, and agree to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedddpm_protocol.untrusted.plain_text import plain

_NAME_WIDTH = 24


def approve(
    state_dir: Annotated[Path, typer.Option(help="the institution's state folder")],
    yes: Annotated[int | None, typer.Option(min=1, help="number of the charter to approve without being asked")] = None,
) -> None:
    """Show the newest run that the federation's root signed, and approve it (with approve_runs = true)."""
    from fedddpm.errors import ConfigError
    from fedddpm.state.charter_book import approve_newest, read_newest
    from fedddpm_protocol.agreement.charter import charter_rows

    known = read_newest(state_dir)
    if known is None:
        raise ConfigError("no charter has arrived here yet", "Start fedddpm participate: it fetches the newest one")
    for name, value in charter_rows(known.charter):
        typer.echo(f"{plain(name) + ':':<{_NAME_WIDTH}} {plain(value, most=4000)}")
    number = known.charter.number
    if known.is_approved:
        typer.echo(f"charter {number} is approved")
        return
    if yes is None:
        typer.confirm(f"Take part in run {known.charter.run}?", abort=True)
    elif yes != number:
        raise ConfigError(f"the newest charter is number {number}, not {yes}", "Read it, then give its own number")
    approve_newest(state_dir, number)
    typer.echo(f"charter {number} is approved; fedddpm participate goes on within seconds")
