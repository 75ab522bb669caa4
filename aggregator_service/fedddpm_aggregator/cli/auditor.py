"""``fedddpm-aggregator auditor``: whose update broke the rules of a sum, from what members open by consent. Offline."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import AUDITOR_PURPOSE, read_public_key, read_sealing_key, write_key
from fedddpm_aggregator.service.verification.opened_updates import Finding, judge_update, may_be_released
from fedddpm_protocol.agreement.roster import Auditor
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives.keys import SealingKey, fingerprint
from fedddpm_protocol.untrusted.plain_text import plain
from fedddpm_protocol.wire.sum_proofs import SealedUpdate

MAX_FILE_BYTES = 2**32  # more than the largest network's update, as text
auditor_app = typer.Typer(no_args_is_help=True, help="Judge updates that members open to the auditor, offline.")


@auditor_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="file of the new key; keep it offline, with the auditor alone")],
    auditor: Annotated[str, typer.Option(help="id that the roster will name")],
) -> None:
    """Create the auditor's key. The root names it: federation roster add --auditor ID=PUBHEX."""
    key = SealingKey.generate()
    try:
        named = Auditor(auditor, key.public_key)
    except ValueError as error:
        raise OperatorError(f"--auditor: {error}") from error
    write_key(out, key, AUDITOR_PURPOSE, named.id)
    print(f"auditor          {named.id}={key.public_key.hex()}")
    print(f"fingerprint      {fingerprint(key.public_key)}")


@auditor_app.command()
def judge(
    files: Annotated[list[Path], typer.Argument(help="what members wrote with fedddpm open-update")],
    key: Annotated[Path, typer.Option(help="the auditor's key file")],
    federation_root: Annotated[str, typer.Option(help="the root's public key, or a file with it")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say of each update whether it is what was sent, and within the rules. Of an update norm and weight are shown.

    Never take the opened sum into your hands: together with what others showed you it shows those who did not.
    """
    own, root = read_sealing_key(key), read_public_key(federation_root)
    findings, unreadable = [], {}
    for path in files:
        try:
            findings.append(_judged(path, own, root))
        except OperatorError as error:
            unreadable[str(path)] = plain(str(error))
    by_sum = [[one for one in findings if one.hu3 == hu3] for hu3 in dict.fromkeys(one.hu3 for one in findings)]
    for of_sum in by_sum:
        members = [one.member for one in of_sum]
        if len(set(members)) != len(members):
            raise OperatorError(f"two of these files are of one member of a sum: {', '.join(sorted(members))}")
    if as_json:
        sums = [_as_json(of_sum) for of_sum in by_sum]
        print(json.dumps({"sums": sums, "prove_nothing": unreadable}, indent=2))
        return
    for of_sum in by_sum:
        _show(of_sum)
    for why in unreadable.values():
        console().print(f"proves nothing about anybody: {why}", markup=False)
    if not findings:
        raise OperatorError("none of these files says anything about anybody")


def _judged(path: Path, key: SealingKey, root: bytes) -> Finding:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            raise OperatorError(f"{path} is no file, or larger than any sealed update")
        return judge_update(SealedUpdate.model_validate_json(path.read_bytes()), key, root)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise OperatorError(f"{path} is no sealed update; ask the member for the file anew") from error
    except ProtocolError as error:
        raise OperatorError(f"{path}: {error}") from error


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    rows = [
        {item.name: getattr(finding, item.name) for item in dataclasses.fields(finding) if item.name != "roster"}
        for finding in findings
    ]
    return {"findings": rows, "not_opened": _not_opened(findings), "may_be_released": may_be_released(findings)}


def _not_opened(findings: Sequence[Finding]) -> list[str]:
    opened = {finding.member for finding in findings}
    return [member for member in findings[0].survivors if member not in opened]


def _show(findings: Sequence[Finding]) -> None:
    first = findings[0]
    where = f"run {first.run}: part {first.session} of round {first.round + 1}, attempt {first.attempt + 1}"
    table = Table("member", "norm", "most allowed", "finding", title=where)
    by_member = {finding.member: finding for finding in findings}
    for member in first.survivors:
        one = by_member.get(member)
        if one is None:
            table.add_row(member, "", "", "not opened")
            continue
        norm, limit = ("" if value is None else f"{value:.6g}" for value in (one.norm, one.limit))
        weight = f"; weight {one.weight}, to be compared with its count" if one.is_disclosed else ""
        table.add_row(member, norm, limit, one.fault or f"as agreed{weight}")
    console().print(table)
    if first.limit is not None and first.limit > 1.05 * first.clip_norm:
        console().print(
            f"A single update can be told to be too large from {first.limit / first.clip_norm:.2f} times the clip norm "
            f"({first.clip_norm:.6g}) on: this sum travelled in few bits."
        )
    _conclude(findings)


def _conclude(findings: Sequence[Finding]) -> None:
    first, unopened = findings[0], ", ".join(_not_opened(findings))
    guilty = [finding.member for finding in findings if finding.fault]
    if not guilty:
        said = f"not cleared: {unopened}, which is no proof of anything" if unopened else "nobody is left"
        console().print(f"Nobody of these broke the rules alone; {said}. Never release by guess.")
        return
    console().print(
        f"{', '.join(guilty)} broke the rules. What shows nothing more: end the run, and start another from another "
        "first model under a roster without who was found (federation roster remove)."
    )
    others = may_be_released(findings)
    if not others:
        console().print(
            "Going on with this round is not possible: too few would be left for a sum, or its members are drawn anew "
            "with every roster."
        )
        return
    console().print(
        f"Or the round goes on without: then the aggregator sees the update of {', '.join(guilty)}, as the difference "
        "of two sums. The root signs (and federation install puts in force):"
    )
    removed = " ".join(f"--member {member}" for member in guilty)
    print(f"fedddpm-aggregator federation roster remove roster.json --root root.key {removed}")  # as it is, to copy
    print(
        f"fedddpm-aggregator federation roster release roster.json --root root.key --base {first.base_model_hash} "
        f"--part {first.part} --old {','.join(first.survivors)} --new {','.join(others)}"
    )
