"""``fedddpm-aggregator federation``: root key, rosters and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedddpm_aggregator.cli.options import Blobs, Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli.roster import roster_app
from fedddpm_aggregator.cli.run_options import InitialModel, with_run_options
from fedddpm_aggregator.security.key_files import ROOT_PURPOSE, write_key
from fedddpm_aggregator.service.administration.roster_files import read_document
from fedddpm_aggregator.service.administration.rosters import install_roster
from fedddpm_aggregator.service.administration.run_settings import RunSettings
from fedddpm_aggregator.service.administration.runs import end_run, pause_run, resume_run, start_run
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

federation_app = typer.Typer(no_args_is_help=True, help="Keys, rosters and runs of the federation.")
federation_app.add_typer(roster_app, name="roster")


@federation_app.command("root-keygen")
def root_keygen(out: Annotated[Path, typer.Option(help="file of the new root key; keep it offline")]) -> None:
    """Create the federation's root key. It signs rosters and belongs on no server."""
    key = SigningKey.generate()
    write_key(out, key, ROOT_PURPOSE)
    print(f"root public key  {key.public_key.hex()}")
    print(f"fingerprint      {fingerprint(key.public_key)}")


@federation_app.command("install")
def install(
    roster: Annotated[Path, typer.Argument(help="signed roster file")], data: Data, database_url: DatabaseUrl = None
) -> None:
    """Put a signed roster in force; a lower version is refused."""
    document = read_document(roster)
    with opened(settings_of(data, database_url)) as ctx:
        installed = install_roster(ctx, document)
    print(f"roster version {installed.version} of {installed.federation} is in force: {len(installed.members)} members")


@federation_app.command("start-run")
@with_run_options
def start(
    settings: RunSettings,
    data: Data,
    initial_model: InitialModel,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Start a run from theta_0. Phases count the server's uptime."""
    with opened(settings_of(data, database_url, {"blobs": blobs})) as ctx:
        start_run(ctx, settings, initial_model)
    print(f"run {settings.name} starts: {settings.rounds} rounds of {settings.method.upper()}")


@federation_app.command("pause-run")
def pause(data: Data, database_url: DatabaseUrl = None) -> None:
    """Start no attempt and close no JOIN until the run is resumed. What is past JOIN goes on to its end."""
    with opened(settings_of(data, database_url)) as ctx:
        print(f"run {pause_run(ctx)} is paused; next: fedddpm-aggregator federation resume-run --data {data}")


@federation_app.command("resume-run")
def resume(data: Data, database_url: DatabaseUrl = None) -> None:
    """Let a paused run go on."""
    with opened(settings_of(data, database_url)) as ctx:
        print(f"run {resume_run(ctx)} goes on")


@federation_app.command("end-run")
def end(data: Data, database_url: DatabaseUrl = None) -> None:
    """End the open run now; its results so far stay."""
    with opened(settings_of(data, database_url)) as ctx:
        print(f"run {end_run(ctx)} is ended")
