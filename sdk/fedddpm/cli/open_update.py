"""``fedddpm open-update``: show one's own update of a round that is held to the auditor, by consent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedddpm import errors
from fedddpm.cli.choices import CONFIG_VARIABLE
from fedddpm_protocol.untrusted.plain_text import plain

if TYPE_CHECKING:
    from fedddpm.rounds.sealed_update import OpenRound


def open_update(
    config: Annotated[Path | None, typer.Option(help="the institution's TOML file", envvar=CONFIG_VARIABLE)] = None,
    state_dir: Annotated[Path | None, typer.Option(help="its state folder, without --config")] = None,
    identity: Annotated[Path | None, typer.Option(help="its private key, without --config")] = None,
    federation_root: Annotated[str | None, typer.Option(help="the root's public key, without --config")] = None,
    part: Annotated[str | None, typer.Option(help="which sum, where there are several")] = None,
    out: Annotated[Path, typer.Option(help="folder for the file; made where it is not there")] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="consent without being asked")] = False,
) -> None:
    """Seal this institution's update of a round without result to the roster's auditor, who can then read it.

    For a round that is held because somebody's update broke the rules. Nothing is sent: give the file to the auditor.
    """
    from fedddpm.config import load_config
    from fedddpm.files.atomic import write_atomic
    from fedddpm.identity import Identity, load_public_key
    from fedddpm.rounds.sealed_update import open_rounds, seal_update
    from fedddpm_protocol.errors import ProtocolError

    if config is not None:
        settings = load_config(config)
        state_dir = state_dir or settings.state_dir
        identity, federation_root = identity or settings.identity, federation_root or settings.federation_root
    if state_dir is None or identity is None or federation_root is None:
        raise errors.ConfigError(
            "which institution is meant is not said", "Give --config, or --state-dir, --identity and --federation-root"
        )
    own, root = Identity.load(identity), load_public_key(federation_root)
    try:
        round_ = _chosen(open_rounds(state_dir, root), part)
        _explain(round_)
        if not yes:
            typer.confirm("Show it to the auditor?", abort=True)
        paper = seal_update(state_dir, round_, own.key)
    except ProtocolError as error:
        raise errors.StateError(
            f"what is on record of this round does not hold: {error}",
            "Tell the coordinator that this update cannot be opened, and why; leave the state folder as it is",
        ) from error
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise errors.ConfigError(f"{out} cannot be made ({error.strerror})", "Choose another folder") from error
    path = out / f"update-{round_.spec.run}-{round_.spec.round + 1}-{round_.session}-{paper.member}.sealed.json"
    write_atomic(path, paper.model_dump_json().encode(), 0o600)
    typer.echo(f"written:  {path}")


def _chosen(rounds: list[OpenRound], part: str | None) -> OpenRound:
    names = [round_.session for round_ in rounds]
    if part is None and len(rounds) > 1:
        raise errors.ConfigError(
            f"this institution has answered for several sums ({', '.join(names)})",
            "Give --part with the one that broke the rules, which the coordinator knows",
        )
    for round_ in rounds:
        if part in (None, round_.session):
            return round_
    raise errors.ConfigError(f"there is no sum of part {part!r} here", f"There are: {', '.join(names)}")


def _explain(round_: OpenRound) -> None:
    """What is shown to whom, before anybody consents."""
    from fedddpm_protocol.primitives.keys import fingerprint

    spec, auditor = round_.spec, round_.auditor
    where = f"round {spec.round + 1}, attempt {spec.attempt + 1} of run {spec.run}"
    typer.echo(f"sum:      part {plain(round_.session)} of {plain(where)}, over {plain(', '.join(round_.survivors))}")
    typer.echo(f"auditor:  {plain(auditor.id)}, key {fingerprint(auditor.sealing_key)}")
    typer.echo(
        "This program cannot see whether the round is held: do it only where the coordinator asks for it, and the\n"
        "log says so. Whoever has the auditor's key and the file reads this institution's update, from which images\n"
        "can be guessed; with the opened sum, which the aggregator has, also the sum of those who show nothing, and\n"
        "of a single one its update. Give the file to the auditor and to nobody else."
    )
