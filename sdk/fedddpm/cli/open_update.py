"""``fedddpm open-update``: show one's own update of a round that is held to the auditor, by consent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedddpm_protocol.untrusted.plain_text import plain


def open_update(
    state_dir: Annotated[Path, typer.Option(help="the institution's state folder")],
    federation_root: Annotated[str, typer.Option(help="the root's public key, or a file with it")],
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="consent without being asked")] = False,
) -> None:
    """Seal this institution's update of a round without result to the roster's auditor, who can then read it.

    For a round that is held because somebody's update broke the rules. Nothing is sent: give the file to the auditor.
    """
    from fedddpm import errors
    from fedddpm.files.atomic import write_atomic
    from fedddpm.identity import load_public_key
    from fedddpm.rounds.sealed_update import open_rounds, seal_update
    from fedddpm_protocol.errors import ProtocolError
    from fedddpm_protocol.primitives.keys import fingerprint

    try:
        rounds = open_rounds(state_dir, load_public_key(federation_root))
        if not out.is_dir():
            raise errors.ConfigError(f"{out} is no folder", "Give a folder that exists")
        auditor = rounds[0].auditor
        for one in rounds:
            where = f"round {one.spec.round + 1}, attempt {one.spec.attempt + 1} of run {one.spec.run}"
            typer.echo(f"sum:      part {plain(one.session)} of {plain(where)}, over {plain(', '.join(one.survivors))}")
        typer.echo(f"auditor:  {plain(auditor.id)}, key {fingerprint(auditor.sealing_key)}")
        typer.echo(
            "Whoever has the auditor's key and the file reads this institution's update, from which images can be"
            " guessed. The aggregator and other institutions cannot."
        )
        if not yes:
            typer.confirm("Show it to the auditor?", abort=True)
        for one in rounds:
            paper = seal_update(state_dir, one)
            name = f"update-{one.spec.run}-{one.spec.round + 1}-{one.session}-{one.held.member}.sealed.json"
            write_atomic(out / name, paper.model_dump_json().encode(), 0o600)
            typer.echo(f"written:  {out / name}")
    except ProtocolError as error:
        raise errors.StateError(f"the record of the round is damaged: {error}", "Restore the state folder") from error
