"""``fedddpm-aggregator audit``: what was decided about the federation, and that nobody changed the record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from fedddpm_aggregator.cli.options import Data, DatabaseUrl, opened, settings_of
from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service import audit

Entry = Mapping[str, Any]  # as GET /v1/operator/audit tells it


def show_audit(
    data: Data,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    noted: Annotated[
        str | None, typer.Option(help="SEQ:HASH of a newest entry noted earlier; it must still be there")
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the audit log after checking its chain of hashes and signatures; its newest entry is worth noting."""
    with opened(settings_of(data, database_url)) as ctx, ctx.database.read() as db:
        head = audit.verify_chain(db, ctx.key.public_key, _head(noted) if noted is not None else None)
        entries = [audit.shown(row) for row in audit.all_entries(db)]
    if as_json:
        print(json.dumps({"newest": f"{head.seq}:{head.hash.hex()}", "entries": entries}, indent=2))
        return
    print_audit(entries)
    print(f"the chain holds; newest entry, to be noted elsewhere: {head.seq}:{head.hash.hex()}")


def print_audit(entries: Iterable[Entry]) -> None:
    """One row an entry."""
    table = Table(title="audit log", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("entry", "time (UTC)", "by", "what", "details"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["at"]))
        details = ", ".join(f"{name} {value}" for name, value in entry["details"].items())
        table.add_row(str(entry["seq"]), at, entry["actor"], entry["action"], details)
    console().print(table)


def _head(text: str) -> audit.Head:
    seq, _, digest = text.partition(":")
    try:
        return audit.Head(int(seq), bytes.fromhex(digest))
    except ValueError:
        raise OperatorError(f"{text!r} names no entry; it reads SEQ:HASH, as this command prints it") from None
