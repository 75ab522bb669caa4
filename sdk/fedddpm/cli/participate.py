"""The command ``fedddpm participate``: argument parsing, the log, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedddpm.cli.choices import CONFIG_VARIABLE, LogFormat, Preset
from fedddpm.cli.exit_codes import STOPPED, STOPPED_CODE, exit_code
from fedddpm.cli.logs import LOG, log_on_stderr
from fedddpm.errors import FedDDPMError

if TYPE_CHECKING:
    from fedddpm.config import ClientConfig, Setting
    from fedddpm.rounds.summary import RoundSummary


def participate(
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these settings; options win over it", envvar=CONFIG_VARIABLE)
    ] = None,
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
    seed: Annotated[int | None, typer.Option(help="decides which images are held out")] = None,
    limit: Annotated[int | None, typer.Option(help="use at most so many images")] = None,
    after_restore: Annotated[bool | None, typer.Option("--after-restore", help="the state is from a backup")] = None,
    min_cohort: Annotated[int | None, typer.Option(help="policy: smallest sum to be part of")] = None,
    c_max: Annotated[int | None, typer.Option(help="policy: conspirators the roster must allow for")] = None,
    preset: Annotated[Preset | None, typer.Option(help="policy: the network to train")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="policy: epochs a round")] = None,
    max_steps: Annotated[int | None, typer.Option(help="policy: steps a round")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="policy: training time a round")] = None,
    max_clip_norm: Annotated[float | None, typer.Option(help="policy: largest update norm")] = None,
    warn_share: Annotated[float | None, typer.Option(help="policy: share of the mean to warn above")] = None,
    max_share: Annotated[float | None, typer.Option(help="policy: share of the mean to stop above")] = None,
    min_bits: Annotated[int | None, typer.Option(help="policy: narrowest ring for updates")] = None,
    disclose_samples: Annotated[
        bool | None, typer.Option("--disclose-samples", help="policy: give the number of images in clear if asked")
    ] = None,
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
    stand_by: Annotated[
        bool | None, typer.Option("--stand-by", help="when a run has ended, wait for the next one")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="metrics: serve /metrics and /healthz on this port, 0: any free one")
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="of the lines where no bars are drawn")] = None,
    progress: Annotated[bool | None, typer.Option(help="draw bars; default: on a terminal")] = None,
) -> None:
    """Take part in rounds until told to stop or until the run ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before torch loads: a stopped container ends at once
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
            "warn_share": warn_share,
            "max_share": max_share,
            "min_bits": min_bits,
            "disclose_samples": disclose_samples,
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
        "metrics": {"port": metrics_port},
        "stand_by": stand_by,
        "log_format": None if log_format is None else log_format.value,
    }
    from fedddpm.config import load_config

    as_json = log_format is LogFormat.JSON
    try:
        loaded = load_config(config, settings)
        as_json = loaded.log_format == "json"
        _take_part(loaded, rounds, progress, as_json)
    except (FedDDPMError, KeyboardInterrupt, Exception) as error:
        if not as_json:
            raise
        raise typer.Exit(_last_line(error)) from None


def _take_part(config: ClientConfig, rounds: int | None, progress: bool | None, as_json: bool) -> None:
    from fedddpm.monitoring.reporter import draws_bars

    bars = not as_json and draws_bars(progress)
    with log_on_stderr("json" if as_json else "none" if bars else "text"):
        from fedddpm.client import Client

        with Client.watched(config, progress=bars) as client:
            ended = len(client.participate(rounds, on_round=_print_round if bars else None))
        if client.leads:
            told = f"{ended or 'no'} {'round' if ended == 1 else 'rounds'} ended since this start"
            typer.echo(told) if bars else LOG.info(told, extra={"event": "ended"})


def _print_round(summary: RoundSummary) -> None:
    typer.echo(str(summary))


def _last_line(error: BaseException) -> int:
    """Say as a line of JSON why the command ends; its exit code."""
    with log_on_stderr("json"):
        if isinstance(error, KeyboardInterrupt):
            LOG.warning(STOPPED, extra={"event": "stopped"})
            return STOPPED_CODE
        if isinstance(error, FedDDPMError):
            LOG.error(str(error), extra={"event": "error", "fields": {"kind": type(error).__name__}})
            return exit_code(error)
        LOG.critical("a defect of fedddpm", extra={"event": "defect"}, exc_info=error)
        return 1
