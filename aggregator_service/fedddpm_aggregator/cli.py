"""The command line: arguments in, one use case, a few lines out.

Commands on a data directory work while the server runs; it notices within a second.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from fedddpm_aggregator.app import KEY_FILE, KEY_PURPOSE, data_directory
from fedddpm_aggregator.blobs import StorageFullError
from fedddpm_aggregator.cli_federation import federation_app
from fedddpm_aggregator.cli_options import Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.errors import AggregatorError, OperatorError
from fedddpm_aggregator.keyfile import KeyFileError, write_key
from fedddpm_aggregator.observability import configure_logging
from fedddpm_aggregator.server import serve_forever
from fedddpm_aggregator.service.federation import initialise
from fedddpm_aggregator.service.runs import SessionLine, overview
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.keys import SigningKey, fingerprint
from fedddpm_protocol.methods import reports_losses
from fedddpm_protocol.spec import LOSS_UNITS, WEIGHT_UNITS

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
app.add_typer(federation_app, name="federation")


@app.command()
def init(
    data: Data,
    root_key: Annotated[str | None, typer.Option(help="the federation's root public key, hex; pinned for good")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create the data directory with the server's signing key, and pin the federation's root key."""
    root = _public_key(root_key) if root_key is not None else None
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OperatorError(f"{data} cannot be created: {error.strerror}") from error
    if not (data / KEY_FILE).exists():
        write_key(data / KEY_FILE, SigningKey.generate(), KEY_PURPOSE)
    with opened(settings_of(data, database_url)) as ctx:
        initialise(ctx, root)
        print(f"server public key  {ctx.key.public_key.hex()}")
        print(f"fingerprint        {fingerprint(ctx.key.public_key)}")
    if root is None:
        print("no root key is pinned yet: fedddpm-aggregator init --data DIR --root-key PUBHEX")


@app.command()
def serve(
    data: Data,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0: any free one")] = 8750,
    database_url: DatabaseUrl = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate chain, PEM")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="private key of the certificate, PEM")] = None,
) -> None:
    """Serve the federation until stopped."""
    if (tls_cert is None) != (tls_key is None):
        raise OperatorError("--tls-cert and --tls-key belong together")
    configure_logging()
    changes = {"host": host, "port": port, "tls_cert": tls_cert, "tls_key": tls_key}
    settings = settings_of(data, database_url, changes)
    with data_directory(settings) as ctx:
        serve_forever(settings, ctx)


@app.command()
def rounds(
    data: Data,
    run: Annotated[str | None, typer.Option(help="name of a run; the newest by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the rounds of a run: cohorts, survivors, sums."""
    with opened(settings_of(data, database_url)) as ctx:
        lines = overview(ctx, run)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        Console().print(rounds_table(lines))


def main() -> None:
    """Entry point: a user's mistake ends with one line and status 1."""
    try:
        app()
    except (AggregatorError, KeyFileError, ProtocolError, StorageFullError) as error:
        _die(str(error))
    except ValidationError as error:
        first = error.errors()[0]
        _die(f"{'.'.join(str(place) for place in first['loc'])}: {first['msg']}")
    except SQLAlchemyError as error:
        _die(f"the database cannot be used: {str(getattr(error, 'orig', error)).splitlines()[0]}")
    except OSError as error:
        _die(f"{error.filename or 'the system'}: {error.strerror or error}")


def _die(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise OperatorError(f"{text!r} is no public key; it has 64 hex digits")
    return key


def rounds_table(lines: list[SessionLine]) -> Table:
    """What ``rounds`` prints; losses are means over the survivors."""
    title = f"run {lines[0].run} ({lines[0].method})" if lines else "no round yet"
    table = Table(title=title)
    for heading in (
        "round",
        "attempt",
        "part",
        "phase",
        "cohort",
        "survivors",
        "weight",
        "loss before",
        "after",
        "why",
    ):
        table.add_column(heading)
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: SessionLine) -> tuple[str, ...]:
    sums = ("", "", "")
    if line.sums:
        losses = [f"{total / LOSS_UNITS / len(line.survivors):.4f}" for total in line.sums[1:]]
        before, after = losses if reports_losses(line.part) else ("", "")
        sums = (f"{line.sums[0] / WEIGHT_UNITS:.3f}", before, after)
    cohort = str(len(line.cohort)) if line.cohort else f"({len(line.joined)} joined)"
    names = ", ".join(line.survivors)
    return (str(line.round), str(line.attempt), line.part, line.phase, cohort, names, *sums, line.reason or "")


if __name__ == "__main__":
    main()
