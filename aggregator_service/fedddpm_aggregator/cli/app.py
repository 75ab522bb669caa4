"""The command line: arguments in, one use case, a few lines out.

Commands on a data directory work while the server runs; it notices within a second.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedddpm_aggregator.app import KEY_PURPOSE, data_directory, prepare_directory
from fedddpm_aggregator.cli import healthcheck
from fedddpm_aggregator.cli.audit import show_audit
from fedddpm_aggregator.cli.auditor import auditor_app
from fedddpm_aggregator.cli.exit_codes import Commands, one_line_errors
from fedddpm_aggregator.cli.federation import federation_app
from fedddpm_aggregator.cli.operator import operator_app
from fedddpm_aggregator.cli.options import Blobs, Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli.prepare import prepare_command
from fedddpm_aggregator.cli.round_tables import console, print_rounds
from fedddpm_aggregator.cli.selftest import drill_command, selftest_command
from fedddpm_aggregator.cli.verify import verify_command
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import read_public_key, write_key
from fedddpm_aggregator.security.service_links import service_links
from fedddpm_aggregator.server.process import serve_forever
from fedddpm_aggregator.service.administration.rosters import initialise
from fedddpm_aggregator.service.history.run_report import run_report
from fedddpm_aggregator.telemetry.logs import configure_logging
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

HELP = """The aggregator of a federation: its keys, its rosters, its runs, and the server that institutions talk to.

First: init, federation roster create, federation install, serve; for each run: federation sign-run, where the root key
is, then federation install. Commands work while the server runs; it notices within a second.
"""
app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=HELP)
app.add_typer(federation_app, name="federation")
app.add_typer(operator_app, name="operator")
app.add_typer(auditor_app, name="auditor")
app.command("audit")(show_audit)


@app.command()
def init(
    data: Data,
    root_key: Annotated[
        str | None,
        typer.Option(help="the federation's root public key, 64 hex digits or a file of them; pinned for good"),
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create the data directory with the server's signing key, and pin the federation's root key."""
    root = read_public_key(root_key) if root_key is not None else None
    settings = settings_of(data, database_url)
    prepare_directory(data)
    if not settings.key_path.exists():
        write_key(settings.key_path, SigningKey.generate(), KEY_PURPOSE)
    with opened(settings, root) as ctx:
        pinned = initialise(ctx, root)
        print(f"server public key  {ctx.key.public_key.hex()}")
        print(f"fingerprint        {fingerprint(ctx.key.public_key)}")
    if pinned is None:
        print(f"no root key is pinned yet: fedddpm-aggregator init --data {data} --root-key PUBHEX")
    else:
        print(f"pinned root key    {fingerprint(pinned)}")


@app.command()
def serve(
    data: Data,
    host: Annotated[str, typer.Option(help="address to listen on", envvar="FEDDDPM_AGGREGATOR_HOST")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="port to listen on; 0: any free one", envvar="FEDDDPM_AGGREGATOR_PORT")
    ] = 8750,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
    keep_rounds: Annotated[
        int,
        typer.Option(
            help="newest rounds of a run whose models and sums are kept; 0: all",
            envvar="FEDDDPM_AGGREGATOR_KEEP_ROUNDS",
        ),
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that opens sums: host:port, auto, ray://host:port or local; by default threads do",
            envvar="FEDDDPM_AGGREGATOR_RAY",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="certificate chain, PEM", envvar="FEDDDPM_AGGREGATOR_TLS_CERT")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="private key of the certificate, PEM", envvar="FEDDDPM_AGGREGATOR_TLS_KEY")
    ] = None,
    page: Annotated[
        str, typer.Option(help="the page at /: auto, on or off", envvar="FEDDDPM_AGGREGATOR_PAGE")
    ] = "auto",
    page_password_file: Annotated[
        Path | None,
        typer.Option(
            help="file with the password of the page (user operator)",
            envvar="FEDDDPM_AGGREGATOR_PAGE_PASSWORD_FILE",
        ),
    ] = None,
) -> None:
    """Serve the federation until stopped."""
    if (tls_cert is None) != (tls_key is None):
        raise OperatorError("--tls-cert and --tls-key belong together")
    changes = {"host": host, "port": port, "tls_cert": tls_cert, "tls_key": tls_key}
    changes |= {"blobs": blobs, "keep_rounds": keep_rounds, "page": page, "page_password_file": page_password_file}
    settings = settings_of(data, database_url, changes | {"ray": ray})
    configure_logging(settings.log_level)
    with data_directory(settings) as ctx:
        serve_forever(settings, ctx)


@app.command()
def rounds(
    data: Data,
    run: Annotated[str | None, typer.Option(help="name of a run; the newest by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the rounds of a run: cohorts, rings, survivors, sums, what they moved; alarms, and members to be called."""
    with opened(settings_of(data, database_url)) as ctx:
        report = run_report(ctx, run)
    if as_json:
        print(json.dumps([asdict(line) for line in report.lines], indent=2))
    else:
        print_rounds(report, console())


app.command("verify")(verify_command)
app.command("prepare")(prepare_command)
app.command("selftest")(selftest_command)
app.command("drill")(drill_command)


@app.command(healthcheck.NAME, help=healthcheck.HELP)
def health_check(url: Annotated[str | None, typer.Option(help=healthcheck.URL_HELP)] = None) -> None:
    """Listed here for --help; the installed command runs it without the imports of this module."""
    raise typer.Exit(healthcheck.run(url))


def main() -> None:
    """Entry point: a user's mistake ends with one line and status 1."""
    for name in service_links(os.environ):
        del os.environ[name]
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
