"""The command ``fedddpm``: argument parsing only.

Exit codes: 0 done, 1 a defect, 2 wrong settings, images or model, 3 refused by policy, 4 the aggregator or the way to
it, 5 the state folder, the disk or the training, 130 stopped by hand.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fedddpm import cli_evaluate, cli_experiment, cli_sample, errors
from fedddpm.cli_choices import Preset
from fedddpm.errors import FedDDPMError

if TYPE_CHECKING:
    from fedddpm.summary import RoundSummary
    from fedddpm_protocol.api import RunState

_LOG = logging.getLogger("fedddpm")
_NAME_WIDTH = 29  # of the longest name that status shows
_EXIT_CODES: tuple[tuple[type[FedDDPMError], int], ...] = (
    (errors.ConfigError, 2),
    (errors.DataError, 2),
    (errors.ModelError, 2),
    (errors.PolicyError, 3),
    (errors.TransportError, 4),
    (errors.StateError, 5),
    (errors.CheckpointError, 5),
    (errors.TrainingError, 5),
)


class _Commands(TyperGroup):
    """Shows errors for users as one message, without a trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FedDDPMError as error:
            Console(stderr=True, soft_wrap=True).print(
                f"Error: {error}", style="bold red", markup=False, highlight=False
            )
            code = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
            raise typer.Exit(code) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("Stopped. The same command goes on where it was.", style="yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
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
    preset: Annotated[Preset, typer.Option(help="which network")] = Preset.PAPER,
    classes: Annotated[int, typer.Option(help="labels the network can be told to draw; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="decides the first weights")] = 0,
) -> None:
    """Make the first model (theta_0) that everybody starts from; the coordinator gives it to the aggregator."""
    from fedddpm.initial import initial_network, seed_of
    from fedddpm.partition import save_model
    from fedddpm.unet import architecture_of

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
def participate(
    config: Annotated[Path | None, typer.Option(help="TOML file with these settings; options win over it")] = None,
    aggregator_url: Annotated[str | None, typer.Option(help="https://...")] = None,
    identity: Annotated[Path | None, typer.Option(help="key file of fedddpm keygen")] = None,
    federation_root: Annotated[str | None, typer.Option(help="the root's public key, or a file with it")] = None,
    data: Annotated[str | None, typer.Option(help="fashion-mnist, cifar10, celeba, a folder or an .npz")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="folder for all that survives a restart")] = None,
    member_id: Annotated[str | None, typer.Option(help="id in the roster, if not that of the identity")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="stop after so many rounds")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    holdout: Annotated[float | None, typer.Option(help="share of images that only measures the loss")] = None,
    image_size: Annotated[int | None, typer.Option(help="resize files of a folder to so many pixels")] = None,
    channels: Annotated[int | None, typer.Option(help="1 grey, 3 colour")] = None,
    labels: Annotated[str | None, typer.Option(help="classes: 'folders', or names of sub-folders: cat,dog")] = None,
    cache: Annotated[bool | None, typer.Option(help="keep decoded images for the next start")] = None,
    data_root: Annotated[Path | None, typer.Option(help="where the named data sets lie")] = None,
    seed: Annotated[int | None, typer.Option(help="order of images and noise")] = None,
    limit: Annotated[int | None, typer.Option(help="use at most so many images")] = None,
    after_restore: Annotated[bool | None, typer.Option("--after-restore", help="the state is from a backup")] = None,
    min_cohort: Annotated[int | None, typer.Option(help="policy: smallest sum to be part of")] = None,
    c_max: Annotated[int | None, typer.Option(help="policy: conspirators the roster must allow for")] = None,
    preset: Annotated[Preset | None, typer.Option(help="policy: the network to train")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="policy: epochs a round")] = None,
    max_steps: Annotated[int | None, typer.Option(help="policy: steps a round")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="policy: training time a round")] = None,
    max_clip_norm: Annotated[float | None, typer.Option(help="policy: largest update norm")] = None,
    min_bits: Annotated[int | None, typer.Option(help="policy: narrowest ring for updates")] = None,
    allow_two_party: Annotated[
        bool | None, typer.Option("--allow-two-party", help="policy: hides from the server, not from the other party")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="learning: decay of the average of the weights; 0: keep none")
    ] = None,
    error_feedback: Annotated[
        bool | None, typer.Option("--error-feedback", help="learning: add what rounding took to the next update")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="learning: auto, float32 or bfloat16")] = None,
    proxy: Annotated[str | None, typer.Option(help="network: http://host:port")] = None,
    ca_bundle: Annotated[Path | None, typer.Option(help="network: PEM of a private authority")] = None,
    client_certificate: Annotated[Path | None, typer.Option(help="network: PEM for mutual TLS")] = None,
    client_key: Annotated[Path | None, typer.Option(help="network: its key")] = None,
    patience: Annotated[float | None, typer.Option(help="network: seconds an outage may last")] = None,
    progress: Annotated[bool | None, typer.Option(help="draw bars; default: on a terminal")] = None,
) -> None:
    """Take part in rounds until told to stop or until the run ends."""
    from fedddpm.client import Client
    from fedddpm.config import Setting
    from fedddpm.progress import draws_bars

    settings: dict[str, Setting] = {
        "aggregator_url": aggregator_url,
        "identity": identity,
        "federation_root": federation_root,
        "data": data,
        "state_dir": state_dir,
        "member_id": member_id,
        "device": device,
        "holdout": holdout,
        "image_size": image_size,
        "channels": channels,
        "labels": labels,
        "cache": cache,
        "data_root": data_root,
        "seed": seed,
        "limit": limit,
        "after_restore": after_restore,
        "policy": {
            "min_cohort": min_cohort,
            "c_max": c_max,
            "preset": None if preset is None else preset.value,
            "max_epochs": max_epochs,
            "max_steps": max_steps,
            "max_seconds": max_seconds,
            "max_clip_norm": max_clip_norm,
            "min_bits": min_bits,
            "allow_two_party": allow_two_party,
        },
        "learning": {"ema_decay": ema_decay, "error_feedback": error_feedback, "precision": precision},
        "network": {
            "proxy": proxy,
            "ca_bundle": ca_bundle,
            "client_certificate": client_certificate,
            "client_key": client_key,
            "patience_s": patience,
        },
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped container says so and ends at once
    with _log_on_stderr(bars=draws_bars(progress)):
        client = Client.from_config(config, settings, progress)
        ended = len(client.participate(rounds, on_round=_tell_round))
    if client.leads:
        typer.echo(f"{ended or 'no'} {'round' if ended == 1 else 'rounds'} ended since this start")


@app.command()
def status(
    config: Annotated[Path | None, typer.Option(help="TOML file: ask the aggregator too")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="the institution's state folder")] = None,
) -> None:
    """Show roster, run, round, phase and own traffic; exit code 4 if the aggregator does not answer."""
    from fedddpm.config import load_config
    from fedddpm.status import ask_aggregator, status_rows

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
        typer.echo(f"{name + ':':<{_NAME_WIDTH}} {value}")  # no table: commands and hashes must not be cut or broken
    if isinstance(remote, str):
        raise typer.Exit(4)


app.command()(cli_evaluate.evaluate)
app.command()(cli_experiment.experiment)
app.command()(cli_experiment.report)
app.command()(cli_sample.sample)
app.command()(cli_sample.export)


@contextmanager
def _log_on_stderr(*, bars: bool) -> Iterator[None]:
    """Where no bars are drawn, every event is a line with the time: a log file shows how far it is."""
    handler = logging.NullHandler() if bars else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.setLevel(level)
        _LOG.removeHandler(handler)


def _tell_round(summary: RoundSummary) -> None:
    _LOG.info(f"round {summary.round + 1}: ended")
    typer.echo(str(summary))


def main() -> None:
    """Entry point of the command."""
    app()
