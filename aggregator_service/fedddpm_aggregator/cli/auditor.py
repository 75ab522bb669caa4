"""``fedddpm-aggregator auditor``: whose update broke the rules of a sum, from what members open by consent. Offline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import AUDITOR_PURPOSE, read_public_key, read_sealing_key, write_key
from fedddpm_aggregator.service.verification.opened_updates import Finding, judge_update, require_one_sum
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives.keys import SealingKey, fingerprint
from fedddpm_protocol.wire.sum_proofs import SealedUpdate

auditor_app = typer.Typer(no_args_is_help=True, help="Judge updates that members open to the auditor, offline.")


@auditor_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="file of the new key; keep it offline, with the auditor alone")],
    auditor: Annotated[str, typer.Option(help="id that the roster will name")],
) -> None:
    """Create the auditor's key. The root names it: federation roster add --auditor ID=PUBHEX."""
    key = SealingKey.generate()
    write_key(out, key, AUDITOR_PURPOSE, auditor)
    print(f"auditor          {auditor}={key.public_key.hex()}")
    print(f"fingerprint      {fingerprint(key.public_key)}")


@auditor_app.command()
def judge(
    files: Annotated[list[Path], typer.Argument(help="what members wrote with fedddpm open-update")],
    key: Annotated[Path, typer.Option(help="the auditor's key file")],
    federation_root: Annotated[str, typer.Option(help="the root's public key, or a file with it")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say of each update whether it is what was sent, and within the rules. Of an update only its norm is shown."""
    own, root = read_sealing_key(key), read_public_key(federation_root)
    findings = [_judged(path, own, root) for path in files]
    require_one_sum(findings)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        return
    _show(findings)


def _judged(path: Path, key: SealingKey, root: bytes) -> Finding:
    try:
        return judge_update(SealedUpdate.model_validate_json(path.read_bytes()), key, root)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise OperatorError(f"{path} is no sealed update; ask the member for the file anew") from error
    except ProtocolError as error:
        raise OperatorError(f"{path} says nothing about anybody: {error}") from error


def _show(findings: list[Finding]) -> None:
    first = findings[0]
    where = f"part {first.session} of round {first.round + 1}, attempt {first.attempt + 1} of run {first.run}"
    table = Table("member", "norm", "most allowed", "finding", title=where)
    opened = {finding.member: finding for finding in findings}
    for member in first.survivors:
        one = opened.get(member)
        if one is None:
            table.add_row(member, "", "", "not opened")
            continue
        norm, limit = ("" if value is None else f"{value:.4g}" for value in (one.norm, one.limit))
        table.add_row(member, norm, limit, one.fault or "as agreed")
    console().print(table)
    guilty = [finding.member for finding in findings if finding.fault]
    unopened = [member for member in first.survivors if member not in opened]
    if guilty:
        others = ",".join(member for member in first.survivors if member not in guilty)
        removed = " ".join(f"--member {member}" for member in guilty)
        console().print(
            f"{', '.join(guilty)} broke the rules. Without it the round goes on; what the two sums differ by is its "
            "update only. The root signs, and the operator installs (federation install):"
        )
        print(f"fedddpm-aggregator federation roster remove roster.json --root root.key {removed}")  # as it is, to copy
        print(
            f"fedddpm-aggregator federation roster release roster.json --root root.key --base {first.base_model_hash} "
            f"--part {first.part} --old {','.join(first.survivors)} --new {others}"
        )
    elif unopened:
        console().print(f"Nobody here broke the rules: it is among {', '.join(unopened)}, who opened nothing.")
    else:
        console().print("Nobody broke the rules alone; ask the operator why the round is held.")
