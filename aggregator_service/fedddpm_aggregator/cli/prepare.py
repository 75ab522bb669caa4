"""``fedddpm-aggregator prepare``: what a database needs before servers start on it; for a job that runs first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedddpm_aggregator.app import server_key
from fedddpm_aggregator.cli.options import Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.db.schema import revision_of
from fedddpm_aggregator.db.wait import wait_for_database
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import read_public_key
from fedddpm_aggregator.service.administration.deployment import bring_in_force, require_own_key
from fedddpm_aggregator.service.administration.roster_files import read_signed
from fedddpm_aggregator.service.administration.rosters import initialise
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.wire.messages import SignedDocument


def prepare_command(
    data: Data,
    root_key: Annotated[
        str | None,
        typer.Option(
            help="the federation's root public key, 64 hex digits or a file of them; pinned for good",
            envvar="FEDDDPM_AGGREGATOR_ROOT_KEY",
        ),
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="signed roster to put in force", envvar="FEDDDPM_AGGREGATOR_ROSTER")
    ] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="seconds to wait for a database that is not there yet")] = 120,
    database_url: DatabaseUrl = None,
) -> None:
    """Bring the schema up to date, pin the root key, put a newer roster in force. The same again changes nothing."""
    if root_key is None:
        raise OperatorError(
            "the root's public key is missing; give --root-key HEX|FILE or set FEDDDPM_AGGREGATOR_ROOT_KEY"
        )
    root = read_public_key(root_key)
    document = read_signed(roster, root) if roster is not None else None
    settings = settings_of(data, database_url)
    server_key(settings)  # what is wrong without a database is told without waiting for one
    wait_for_database(settings.resolved_database_url, wait_s, lambda line: print(line, file=sys.stderr, flush=True))
    with opened(settings, root) as ctx:
        _prepare(ctx, root, document)


def _prepare(ctx: Context, root: bytes, document: SignedDocument | None) -> None:
    with ctx.database.engine.connect() as connection:
        print(f"schema       {revision_of(connection)}")
    initialise(ctx, root)
    print(f"root key     {fingerprint(root)} is pinned")
    if document is not None:
        print(f"roster       {bring_in_force(ctx, document)}")
    require_own_key(ctx)
    print(f"server key   {fingerprint(ctx.key.public_key)}", flush=True)
