"""``fedddpm-aggregator operator``: running a federation from another machine than the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from fedddpm_aggregator.cli.audit import print_audit
from fedddpm_aggregator.cli.operator_client import OperatorClient
from fedddpm_aggregator.cli.round_tables import console, rounds_table
from fedddpm_aggregator.cli.run_options import InitialModel, started, with_run_options
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import OPERATOR_PURPOSE, read_key, read_owner, write_key
from fedddpm_aggregator.service.administration.charter_files import form_of
from fedddpm_aggregator.service.administration.roster_files import read_document
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

operator_app = typer.Typer(no_args_is_help=True, help="Runs and rosters from afar, signed by an operator's key.")
Url = Annotated[str, typer.Option(help="of the aggregator", envvar="FEDDDPM_OPERATOR_URL")]
Key = Annotated[Path, typer.Option(help="the operator's key file", envvar="FEDDDPM_OPERATOR_KEY")]
Operator = Annotated[
    str | None, typer.Option(help="id in the roster; by default the one that the key file names", show_default=False)
]
Run = Annotated[str, typer.Option(help="name of the run")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@operator_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="file of the new key")],
    operator: Annotated[str, typer.Option(help="id that the roster will name")],
) -> None:
    """Create an operator's key. The root names it: federation roster add --operator ID=PUBHEX."""
    key = SigningKey.generate()
    write_key(out, key, OPERATOR_PURPOSE, operator)
    print(f"operator         {operator}={key.public_key.hex()}")
    print(f"fingerprint      {fingerprint(key.public_key)}")


@operator_app.command("start-run")
@with_run_options
def start(
    charter: Annotated[Path, typer.Argument(help="charter that the root has signed (federation sign-run)")],
    durations: OperatorSettings,
    url: Url,
    key: Key,
    initial_model: InitialModel,
    operator: Operator = None,
) -> None:
    """Upload theta_0 and start the run of a signed charter. The same again changes nothing."""
    document = read_document(charter, "charter")
    form = form_of(charter, document)
    if isinstance(form, Roster):
        raise OperatorError(f"{charter} is a roster; install it with: operator install-roster")
    with _client(url, key, operator) as client:
        outcome = client.start_run(document, durations, initial_model)["outcome"]
    print(started(form, outcome == "done"))


@operator_app.command("pause-run")
def pause(url: Url, key: Key, run: Run, operator: Operator = None) -> None:
    """Start no attempt and close no JOIN until the run is resumed. What is past JOIN goes on to its end."""
    _steer(url, key, operator, run, "pause", "paused")


@operator_app.command("resume-run")
def resume(url: Url, key: Key, run: Run, operator: Operator = None) -> None:
    """Let a paused run go on."""
    _steer(url, key, operator, run, "resume", "resumed")


@operator_app.command("end-run")
def end(url: Url, key: Key, run: Run, operator: Operator = None) -> None:
    """End a run now; its results so far stay."""
    _steer(url, key, operator, run, "end", "ended")


@operator_app.command("install-roster")
def install(
    roster: Annotated[Path, typer.Argument(help="signed roster file")], url: Url, key: Key, operator: Operator = None
) -> None:
    """Put a signed roster in force; a lower version is refused."""
    document = read_document(roster)
    with _client(url, key, operator) as client:
        print(f"roster version {client.install_roster(document)['roster_version']} is in force")


@operator_app.command()
def rounds(
    url: Url,
    key: Key,
    run: Annotated[str | None, typer.Option(help="name of a run; the newest by default")] = None,
    as_json: AsJson = False,
    operator: Operator = None,
) -> None:
    """Show the rounds of a run: cohorts, rings, survivors, sums."""
    with _client(url, key, operator) as client:
        lines = client.rounds(run)
    if as_json:
        print(json.dumps(lines, indent=2))
    else:
        console().print(rounds_table(TypeAdapter(list[SessionLine]).validate_python(lines)))


@operator_app.command()
def audit(url: Url, key: Key, as_json: AsJson = False, operator: Operator = None) -> None:
    """Show the audit log as the server tells it."""
    with _client(url, key, operator) as client:
        entries = client.audit()
    if as_json:
        print(json.dumps(entries, indent=2))
    else:
        print_audit(entries)


def _steer(url: str, key: Path, operator: str | None, run: str, verb: str, done: str) -> None:
    with _client(url, key, operator) as client:
        outcome = client.steer_run(run, verb)["outcome"]
    print(f"run {run} is {done}" + ("" if outcome == "done" else " (it was before)"))


def _client(url: str, key: Path, operator: str | None) -> OperatorClient:
    name = operator or read_owner(key, OPERATOR_PURPOSE)
    if name is None:
        raise OperatorError(f"{key} does not name its operator; say it with --operator ID")
    return OperatorClient(url, name, read_key(key, OPERATOR_PURPOSE))
