"""The command ``fedddpm participate``: argument parsing, the log, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedddpm.cli.choices import CONFIG_VARIABLE
from fedddpm.cli.exit_codes import STOPPED, STOPPED_CODE, exit_code
from fedddpm.cli.logs import LOG, log_on_stderr
from fedddpm.cli.setting_options import place_among, setting_options, settings_given
from fedddpm.config import ClientConfig, load_config
from fedddpm.errors import FedDDPMError

if TYPE_CHECKING:
    from fedddpm.rounds.summary import RoundSummary


_OPTIONS = tuple(setting_options(ClientConfig))


def participate(
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these settings; options win over it", envvar=CONFIG_VARIABLE)
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="stop after so many rounds")] = None,
    progress: Annotated[bool | None, typer.Option(help="draw bars; default: on a terminal")] = None,
    **given: object,
) -> None:
    """Take part in rounds until told to stop or until the run ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before torch loads: a stopped container ends at once
    settings = settings_given(_OPTIONS, given)
    as_json = settings["log_format"] == "json"
    try:
        loaded = load_config(config, settings)
        as_json = loaded.log_format == "json"
        _take_part(loaded, rounds, progress, as_json)
    except (FedDDPMError, KeyboardInterrupt, Exception) as error:
        if not as_json:
            raise
        raise typer.Exit(_last_line(error)) from None


_WHO = 1 + [option.setting for option in _OPTIONS].index("member_id")
place_among(participate, _OPTIONS[:_WHO], after="config")
place_among(participate, _OPTIONS[_WHO:], after="rounds")


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
