"""``fedddpm-aggregator federation``: root key, rosters and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedddpm_aggregator.cli_options import Blobs, Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli_roster import roster_app
from fedddpm_aggregator.keyfile import ROOT_PURPOSE, write_key
from fedddpm_aggregator.rosterfile import read_document
from fedddpm_aggregator.service.attempts import DEFAULT_BITS, DEFAULT_FIRST_BITS
from fedddpm_aggregator.service.federation import install_roster
from fedddpm_aggregator.service.runs import RING_CHOICES, RunSettings, end_run, start_run
from fedddpm_protocol.keys import SigningKey, fingerprint
from fedddpm_protocol.methods import Method
from fedddpm_protocol.spec import CHUNK_COORDINATES

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
def start(
    data: Data,
    name: Annotated[str, typer.Option(help="name of the run")],
    method: Annotated[str, typer.Option(help=f"one of {', '.join(Method)}")],
    initial_model: Annotated[Path, typer.Option(help="theta_0, a safetensors file by the SDK's save_model")],
    rounds: Annotated[int, typer.Option(min=1, help="rounds of the run")],
    epochs: Annotated[int, typer.Option(min=1, help="local epochs a round")] = 1,
    max_steps: Annotated[int, typer.Option(min=0, help="most local steps a round; 0: no limit")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images in a local step")] = 128,
    learning_rate: Annotated[float, typer.Option(help="of the local optimizer")] = 1e-4,
    clip_norm: Annotated[float, typer.Option(help="largest L2 norm of one institution's update")] = 10.0,
    weighting: Annotated[str, typer.Option(help="hidden, equal or disclosed sample counts")] = "hidden",
    weight_cap: Annotated[int, typer.Option(min=1, help="samples that count as a full weight")] = 65535,
    min_cohort: Annotated[int, typer.Option(min=0, help="joins to wait for; 0: the roster's n_min")] = 0,
    chunk_coordinates: Annotated[
        int, typer.Option(min=8, help="coordinates in a chunk; a multiple of 4096 fits all")
    ] = CHUNK_COORDINATES,
    bits: Annotated[int, typer.Option(help=f"ring in which updates travel: {RING_CHOICES} bits")] = DEFAULT_BITS,
    first_bits: Annotated[
        int | None,
        typer.Option(
            help="ring of the first round, and wherever nothing is known of a part's size; "
            f"by default {DEFAULT_FIRST_BITS}, or --bits where that is more",
            show_default=False,
        ),
    ] = None,
    join_s: Annotated[float, typer.Option(help="seconds for training and joining")] = 3600.0,
    shares_s: Annotated[float, typer.Option(help="seconds for exchanging key shares")] = 60.0,
    masked_s: Annotated[float, typer.Option(help="seconds for uploading")] = 600.0,
    confirm_s: Annotated[float, typer.Option(help="seconds for confirming who uploaded")] = 60.0,
    unmask_s: Annotated[float, typer.Option(help="seconds for the answers that open the sum")] = 120.0,
    database_url: DatabaseUrl = None,
    blobs: Blobs = None,
) -> None:
    """Start a run from theta_0. Phases count the server's uptime."""
    settings = RunSettings(
        name=name,
        method=method,
        rounds=rounds,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        weighting=weighting,
        weight_cap=weight_cap,
        min_cohort=min_cohort,
        chunk_coordinates=chunk_coordinates,
        bits=bits,
        first_bits=first_bits,
        join_s=join_s,
        shares_s=shares_s,
        masked_s=masked_s,
        confirm_s=confirm_s,
        unmask_s=unmask_s,
    )
    with opened(settings_of(data, database_url, {"blobs": blobs})) as ctx:
        start_run(ctx, settings, initial_model)
    print(f"run {name} starts: {rounds} rounds of {method.upper()}")


@federation_app.command("end-run")
def end(data: Data, database_url: DatabaseUrl = None) -> None:
    """End the open run now; its results so far stay."""
    with opened(settings_of(data, database_url)) as ctx:
        print(f"run {end_run(ctx)} is ended")
