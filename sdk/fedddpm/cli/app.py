"""The command ``fedddpm``: argument parsing only. How it ends is in ``exit_codes``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedddpm import errors
from fedddpm.cli import approve, evaluate, experiment, participate, sample
from fedddpm.cli.check_evidence import check_evidence
from fedddpm.cli.choices import CONFIG_VARIABLE, Preset
from fedddpm.cli.exit_codes import Commands
from fedddpm.cli.open_update import open_update
from fedddpm_protocol.untrusted.plain_text import plain

if TYPE_CHECKING:
    from fedddpm_protocol.wire.api import RunState

_NAME_WIDTH = 29  # of the longest name that status shows

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train one diffusion model together with other institutions without showing anybody your update.",
)


@app.command()
def keygen(
    member_id: Annotated[str, typer.Option("--id", help="this institution's id in the roster")],
    out: Annotated[Path, typer.Option(help="file for the private key; never overwritten")],
) -> None:
    """Make this institution's identity, and print what the coordinator needs."""
    from fedddpm.identity import Identity

    identity = Identity.generate(member_id)
    identity.save(out)
    typer.echo(f"id:          {identity.member_id}")
    typer.echo(f"public key:  {identity.public_key.hex()}")
    typer.echo(f"fingerprint: {identity.fingerprint}")
    typer.echo(
        f"The private key is in {out}. Send id and public key to the coordinator, compare the fingerprint by phone."
    )


@app.command("init-model")
def init_model(
    out: Annotated[Path, typer.Option(help="safetensors file for the aggregator")],
    image_size: Annotated[int, typer.Option(help="pixels")] = 28,
    channels: Annotated[int, typer.Option(help="1 grey, 3 colour")] = 1,
    preset: Annotated[Preset, typer.Option(help="which network")] = Preset.LEAN,
    classes: Annotated[int, typer.Option(help="labels the network can be told to draw; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="decides the first weights")] = 0,
) -> None:
    """Make the first model (theta_0) that everybody starts from; the coordinator gives it to the aggregator."""
    from fedddpm.model.initialization import initial_network, seed_of
    from fedddpm.model.model_files import save_model
    from fedddpm.model.unet import architecture_of

    if out.exists():
        raise errors.ConfigError(f"{out} exists and is not overwritten", "Choose another --out, or remove it first")
    public = seed_of(seed)
    architecture = architecture_of(image_size, channels, preset.value, classes=classes)
    model = initial_network(architecture, public)
    save_model(out, model, initial_seed=public)
    size = sum(parameter.numel() for parameter in model.parameters())
    told = f" with {classes} classes" if classes else ""
    typer.echo(f"{out}: {preset.value} network for {image_size}x{image_size}x{channels}{told}, {size:,} parameters")
    typer.echo(f"seed: {public.hex()} (public; institutions make these weights from it and download none)")


@app.command()
def status(
    config: Annotated[
        Path | None, typer.Option(help="TOML file: ask the aggregator too", envvar=CONFIG_VARIABLE)
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="the institution's state folder")] = None,
) -> None:
    """Show roster, run, round, phase and own traffic; exit code 4 if the aggregator does not answer."""
    from fedddpm.cli.status import ask_aggregator, status_rows
    from fedddpm.config import load_config

    settings = None if config is None else load_config(config, {"state_dir": state_dir})
    folder = state_dir if settings is None else settings.state_dir
    if folder is None:
        raise errors.ConfigError("neither --config nor --state-dir is given", "Give one of them")
    remote: RunState | str | None = None
    try:
        remote = None if settings is None else ask_aggregator(settings)
    except errors.TransportError as error:
        remote = f"not reachable ({error})"
    for name, value in status_rows(folder, remote):
        typer.echo(
            f"{plain(name) + ':':<{_NAME_WIDTH}} {plain(value)}"
        )  # no table: commands and hashes must not be cut or broken
    if isinstance(remote, str):
        raise typer.Exit(4)


app.command()(participate.participate)
app.command()(approve.approve)
app.command("check-evidence")(check_evidence)
app.command("open-update")(open_update)
app.command()(evaluate.evaluate)
app.command()(experiment.experiment)
app.command()(experiment.report)
app.command()(sample.sample)
app.command()(sample.export)


def main() -> None:
    """Entry point of the command."""
    app()
