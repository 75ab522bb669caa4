"""``fedddpm check-evidence``: a proof of a false sum, checked with the root's public key and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedddpm import errors
from fedddpm_protocol.untrusted.plain_text import plain


def check_evidence(
    file: Annotated[Path, typer.Argument(help="the proof, false-sum-....json")],
    federation_root: Annotated[str, typer.Option(help="the root's public key, or a file with it")],
) -> None:
    """Check the proof that an aggregator published a false sum; exit code 0 if it convicts, 2 if it does not."""
    from pydantic import ValidationError

    from fedddpm.identity import load_public_key
    from fedddpm_protocol.errors import ProtocolError
    from fedddpm_protocol.primitives.keys import fingerprint
    from fedddpm_protocol.session.checked_sum import judge
    from fedddpm_protocol.wire.sum_proofs import FalseSum

    root = load_public_key(federation_root)
    try:
        proof = FalseSum.model_validate_json(file.read_bytes())
    except OSError as error:
        raise errors.DataError(f"{file} cannot be read ({error.strerror})", "Check the path") from error
    except ValidationError as error:
        raise errors.DataError(f"{file} is no proof of a false sum", "Ask for the file anew") from error
    try:
        verdict = judge(proof, root)
    except ProtocolError as error:
        raise errors.DataError(
            f"{file} proves nothing: {error}",
            "Compare the root key's fingerprint with the coordinator's; if it is right, the file was changed",
        ) from error
    if not verdict.false:
        raise errors.DataError(
            f"{file} proves nothing: what it shows is the sum of what was sent", "Ask for the right file"
        )
    where = f"round {verdict.round + 1}, attempt {verdict.attempt + 1} of run {verdict.run}"
    typer.echo(
        f"CONVICTED: the aggregator of federation {plain(verdict.federation)} with the key"
        f" {fingerprint(verdict.server_public_key)} signed a false result of {plain(where)}"
    )
    typer.echo(f"what:      {plain(verdict.false)}")
    typer.echo(
        "by:        the survivors' signatures over other uploads; right unless more lie than the roster allows for"
        if verdict.by_confirmations
        else "by:        its own signatures and the digests under them; nobody's word is needed"
    )
