"""``fedddpm-aggregator federation``: root key, rosters, charters and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedddpm_aggregator.cli.options import Blobs, Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli.roster import Root, roster_app
from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.cli.run_options import InitialModel, started, with_run_options
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import ROOT_PURPOSE, read_key, write_key
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.charter_files import (
    form_of,
    newest_beside,
    read_charter,
    require_new_file,
    write_charter,
)
from fedddpm_aggregator.service.administration.roster_files import read_document, read_roster
from fedddpm_aggregator.service.administration.rosters import install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import (
    end_run,
    first_model,
    next_charter,
    pause_run,
    resume_run,
    start_run,
)
from fedddpm_protocol.agreement.charter import Charter, charter_rows, sign_charter
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

federation_app = typer.Typer(no_args_is_help=True, help="Keys, rosters, charters and runs of the federation.")
federation_app.add_typer(roster_app, name="roster")
charter_app = typer.Typer(no_args_is_help=True, help="Charters that the root has signed (federation sign-run).")
federation_app.add_typer(charter_app, name="charter")
ROOT_KEY = "root.key"  # as in a rehearsal
NUMBER_HELP = (
    "of the charter; by default one more than that of --previous, or of the newest charter beside the new file"
)
Ends = Annotated[
    list[str] | None, typer.Option("--ends", help="run that ends here, whatever it came to; repeat for several")
]


@federation_app.command("root-keygen")
def root_keygen(out: Annotated[Path, typer.Option(help="file of the new root key; keep it offline")]) -> None:
    """Create the federation's root key. It signs rosters and runs, and belongs on no server."""
    key = SigningKey.generate()
    write_key(out, key, ROOT_PURPOSE)
    print(f"root public key  {key.public_key.hex()}")
    print(f"fingerprint      {fingerprint(key.public_key)}")


@federation_app.command("install")
@with_run_options
def install(
    signed: Annotated[Path, typer.Argument(help="roster or charter that the root has signed")],
    data: Data,
    durations: OperatorSettings,
    initial_model: Annotated[Path | None, typer.Option(help="theta_0, with a charter")] = None,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Put a signed roster in force, or start the run of a signed charter; an older one is refused.

    How long phases last is the operator's; all else of a run stands in its charter.
    """
    document = read_document(signed, "roster or charter")
    form = form_of(signed, document)
    if isinstance(form, Roster):
        with opened(settings_of(data, database_url)) as ctx:
            installed = install_roster(ctx, document)
        who = f"roster version {installed.version} of {installed.federation}"
        print(f"{who} is in force: {len(installed.members)} members")
        return
    if initial_model is None:
        raise OperatorError(f"{signed} is the charter of run {form.run}; give the first model: --initial-model FILE")
    with opened(settings_of(data, database_url, {"blobs": blobs})) as ctx:
        charter, is_new = start_run(ctx, document, durations, initial_model)
    print(started(charter, is_new))


@federation_app.command("sign-run")
@with_run_options
def sign(
    charter: Annotated[Path, typer.Argument(help="new file of the signed charter, *.json")],
    settings: RunSettings,
    root: Root,
    roster: Annotated[Path, typer.Option(help="file of the federation's signed roster")],
    initial_model: InitialModel,
    number: Annotated[int | None, typer.Option(min=1, help=NUMBER_HELP)] = None,
    previous: Annotated[Path | None, typer.Option(help="charter that this one comes after")] = None,
    ends: Ends = None,
) -> None:
    """Sign all that decides what is trained in a run, with the root key, away from any server. It shows what is signed.

    Institutions train what stands in a charter and nothing else. Next: the operator's federation install.
    """
    require_new_file(charter)
    key = read_key(root, ROOT_PURPOSE)
    members, network = read_roster(roster, key), first_model(initial_model)
    before = _before(charter, previous, members.federation, key)
    number = _number(number, before, charter.parent)
    over = (*(ends or ()), *(before[1].ends if before else ()))  # an institution may not have seen the one before
    made = draft_charter(settings, members, network, number, over)
    show_charter(made)
    write_charter(charter, sign_charter(made, key))
    print(f"signed by {fingerprint(key.public_key)}: {charter}")


@charter_app.command("show")
def show(charter: Annotated[Path, typer.Argument(help="file of the signed charter")]) -> None:
    """Show a signed charter in plain words (whose signature is checked where it is installed)."""
    form = form_of(charter, read_document(charter, "charter"))
    if isinstance(form, Roster):
        raise OperatorError(f"{charter} is a roster; show it with: federation roster show")
    show_charter(form)


@federation_app.command("start-run")
@with_run_options
def start(
    settings: RunSettings,
    data: Data,
    initial_model: InitialModel,
    durations: OperatorSettings,
    root_key: Annotated[
        Path | None, typer.Option(help="the federation's root key; by default root.key in DATA or beside it")
    ] = None,
    ends: Ends = None,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Sign a run and start it from theta_0: for rehearsals, where the root key lies on the server's machine.

    Elsewhere sign-run and install do it, each where it belongs. Phases count the server's uptime.
    """
    key = read_key(root_key or _root_key_near(data), ROOT_PURPOSE)
    network = first_model(initial_model)
    with opened(settings_of(data, database_url, {"blobs": blobs})) as ctx:
        number, roster, over = next_charter(ctx)
        made = draft_charter(settings, roster, network, number, (*over, *(ends or ())))
        charter, is_new = start_run(ctx, sign_charter(made, key), durations, initial_model)
    print(started(charter, is_new))


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


def show_charter(charter: Charter) -> None:
    """What a charter says, in plain words."""
    table = Table(
        "what", "as it is signed", title=f"charter {charter.number} of {charter.federation}: run {charter.run}"
    )
    for name, value in charter_rows(charter):
        table.add_row(name, value)
    console().print(table)


def _before(charter: Path, previous: Path | None, federation: str, root: SigningKey) -> tuple[Path, Charter] | None:
    """The charter that a new one comes after, as far as the root can tell."""
    if previous is None:
        return newest_beside(charter, federation, root.public_key)
    before = read_charter(previous, root.public_key)
    if before.federation != federation:
        raise OperatorError(f"{previous} is a charter of federation {before.federation!r}, not {federation!r}")
    return previous, before


def _number(number: int | None, before: tuple[Path, Charter] | None, folder: Path) -> int:
    """The number of a new charter, which is said where nobody chose it; OperatorError if it would not grow."""
    if number is None:
        number = before[1].number + 1 if before else 1
        why = f"one above that of {before[0]}" if before else f"no charter of this federation lies in {folder}"
        print(f"number {number}: {why}")
    elif before and number <= before[1].number:
        raise OperatorError(f"--number {number} is not above {before[1].number}, that of {before[0]}; numbers grow")
    return number


def _root_key_near(data: Path) -> Path:
    for folder in (data, data.absolute().parent):
        if (folder / ROOT_KEY).exists():
            return folder / ROOT_KEY
    raise OperatorError(
        f"no {ROOT_KEY} lies in {data} or beside it. Let the root sign the run where its key is kept (federation "
        "sign-run), and install here what was signed: federation install CHARTER --initial-model FILE. In a rehearsal: "
        "--root-key FILE"
    )
