"""``fedddpm-aggregator federation roster``: sign rosters with the root key, away from any server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from fedddpm_aggregator.cli.round_tables import console
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import ROOT_PURPOSE, read_key
from fedddpm_aggregator.service.administration.roster_files import (
    make_roster,
    new_draw,
    next_version,
    read_document,
    read_roster,
    write_roster,
)
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import MAX_REDRAWS, Auditor, Member, Release, Roster
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.untrusted.redaction import quoted

T = TypeVar("T")
roster_app = typer.Typer(no_args_is_help=True, help="Sign rosters with the federation's root key, offline.")
RosterFile = Annotated[Path, typer.Argument(help="file of the signed roster")]
Root = Annotated[Path, typer.Option(help="file of the federation's root key")]
Members = Annotated[list[str] | None, typer.Option("--member", help="ID=PUBHEX; repeat for several")]
MembersFile = Annotated[Path | None, typer.Option(help="file with one ID=PUBHEX a line")]
Operators = Annotated[
    list[str] | None,
    typer.Option("--operator", help="ID=PUBHEX of who may start, pause and end runs from afar; repeat for several"),
]
AuditorOption = Annotated[
    str | None,
    typer.Option("--auditor", help="ID=PUBHEX (auditor keygen) of who may be shown single updates by consent"),
]
Corrupt = Annotated[int, typer.Option(min=0, help="with shards: how many of all members may conspire")]
Redraws = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_REDRAWS,
        help="with shards: after a spoiled sum the next round is in other shards, drawn so often",
    ),
]


@roster_app.command("create")
def create(
    roster: RosterFile,
    root: Root,
    federation: Annotated[str, typer.Option(help="name of the federation")],
    server_key: Annotated[str, typer.Option(help="the aggregator's public key, hex (printed by init)")],
    member: Members = None,
    members_file: MembersFile = None,
    operator: Operators = None,
    auditor: AuditorOption = None,
    c_max: Annotated[int, typer.Option(min=0, help="institutions that may conspire with the aggregator")] = 0,
    n_min: Annotated[int, typer.Option(min=2, help="smallest set whose sum may be opened")] = 3,
    shard_size: Annotated[int, typer.Option(min=0, help="most members of a shard; 0: one sum of everybody")] = 0,
    corrupt: Corrupt = 0,
    redraws: Redraws = 0,
) -> None:
    """Sign the first roster of a federation."""
    key = read_key(root, ROOT_PURPOSE)
    members = _named(member, members_file)
    if len(members) < n_min:
        raise OperatorError(f"{len(members)} members are fewer than --n-min {n_min}: no sum could be opened; name more")
    first = make_roster(
        federation=federation,
        version=1,
        c_max=c_max,
        n_min=n_min,
        server_public_key=_hex(server_key, 32),
        members=_sorted(members),
        operators=_sorted([_member(text, "--operator") for text in operator or ()]),
        sharding=(new_draw(shard_size, corrupt, redraws=redraws),) if shard_size else (),
        auditors=_auditors(auditor),
    )
    write_roster(roster, first, key, new=True)
    _show(first)


@roster_app.command("add")
def add(
    roster: RosterFile,
    root: Root,
    member: Members = None,
    members_file: MembersFile = None,
    operator: Operators = None,
    auditor: AuditorOption = None,
) -> None:
    """Enrol members, operators or an auditor: sign the next version with them. An id that is enrolled gets the new key.

    A new auditor takes the place of another one.
    """
    current = read_roster(roster, read_key(root, ROOT_PURPOSE))
    new = {
        "members": _merged(current.members, _named(member, members_file)),
        "operators": _merged(current.operators, [_member(text, "--operator") for text in operator or ()]),
        "auditors": _auditors(auditor) or current.auditors,
    }
    if all(getattr(current, name) == value for name, value in new.items()):
        raise OperatorError("nothing would change; name --member, --members-file, --operator or --auditor")
    _replace(roster, root, next_version(current, **new))


@roster_app.command("remove")
def remove(
    roster: RosterFile,
    root: Root,
    member: Annotated[list[str] | None, typer.Option("--member", help="id; repeat for several")] = None,
    operator: Annotated[list[str] | None, typer.Option("--operator", help="id; repeat for several")] = None,
    auditor: Annotated[str | None, typer.Option("--auditor", help="id")] = None,
) -> None:
    """Remove members, operators or the auditor: sign the next version without them."""
    current = read_roster(roster, read_key(root, ROOT_PURPOSE))
    gone: tuple[set[str], ...] = (set(member or ()), set(operator or ()), set() if auditor is None else {auditor})
    there = current.ids, [one.id for one in current.operators], [one.id for one in current.auditors]
    unknown = {name for named, known in zip(gone, there, strict=True) for name in named.difference(known)}
    if unknown or not any(gone):
        raise OperatorError(f"not in the roster: {', '.join(sorted(unknown)) or 'nobody was named'}")
    left = tuple(old for old in current.members if old.id not in gone[0])
    operators = tuple(old for old in current.operators if old.id not in gone[1])
    auditors = tuple(old for old in current.auditors if old.id not in gone[2])
    _replace(roster, root, next_version(current, members=left, operators=operators, auditors=auditors))
    if len(left) < current.n_min:  # not refused: a stolen key must go at once
        print(f"note: {len(left)} members are fewer than n_min {current.n_min}; enrol more before a round can begin")


@roster_app.command("shard")
def shard(
    roster: RosterFile,
    root: Root,
    size: Annotated[int, typer.Option(min=0, help="most members of a shard; 0: one sum of everybody again")],
    corrupt: Corrupt = 0,
    redraws: Redraws = 0,
    seed: Annotated[str | None, typer.Option(help="64 hex digits that decide the draw; fresh ones by default")] = None,
    source: Annotated[str | None, typer.Option(help="where --seed comes from, e.g. the round of a beacon")] = None,
) -> None:
    """Spread the members over shards, or draw these anew: sign the next version."""
    current = read_roster(roster, read_key(root, ROOT_PURPOSE))
    chosen = None if seed is None else _hex(seed, 32)
    draws = (new_draw(size, corrupt, chosen, source, redraws=redraws),) if size else ()
    _replace(roster, root, next_version(current, sharding=draws))


@roster_app.command("release")
def release(
    roster: RosterFile,
    root: Root,
    base: Annotated[str, typer.Option(help="hash of the base model, hex")],
    part: Annotated[str, typer.Option(help="part of the method, e.g. decoder")],
    old: Annotated[str, typer.Option(help="the recorded survivors: ids separated by commas")],
    new: Annotated[str, typer.Option(help="the survivors of the one new sum: ids separated by commas")],
) -> None:
    """Permit one more sum over a spent base model. The difference of the two sums becomes visible: tell the members."""
    current = read_roster(roster, read_key(root, ROOT_PURPOSE))
    sessions = sorted({name for method in Method for name in method.sessions})
    if part not in sessions:
        raise OperatorError(f"--part {part!r} is no part that is summed; choose one of {', '.join(sessions)}")
    strangers = sorted(set(_ids(new)) - set(current.ids))
    if strangers:
        raise OperatorError(f"--new names {', '.join(strangers)}, not in roster version {current.version}")
    try:
        step = Release(_hex(base, 32), part, _ids(old), _ids(new))
    except ValueError as error:
        raise OperatorError(f"this release is not possible: {error}") from error
    _replace(roster, root, next_version(current, releases=(*current.releases, step)))


@roster_app.command("show")
def show(roster: RosterFile) -> None:
    """Show a signed roster (whose signature is checked where it is installed)."""
    try:
        _show(canonical.decode(Roster, read_document(roster).body))
    except MalformedError as error:
        raise OperatorError(f"{roster} is no roster: {error}") from error


def _replace(path: Path, root: Path, roster: Roster) -> None:
    write_roster(path, roster, read_key(root, ROOT_PURPOSE), new=False)
    _show(roster)


def _show(roster: Roster) -> None:
    title = (
        f"{roster.federation}, roster version {roster.version}: at most {roster.c_max} conspirators, "
        f"sums of at least {roster.n_min}"
    )
    table = Table("member", "fingerprint of its key", title=title)
    for member in roster.members:
        table.add_row(member.id, fingerprint(member.public_key))
    console().print(table)
    console().print(f"aggregator key: {fingerprint(roster.server_public_key)}")
    for operator in roster.operators:
        console().print(f"operator {operator.id}: {fingerprint(operator.public_key)}")
    for one in roster.auditors:
        console().print(f"auditor {one.id}: {fingerprint(one.sealing_key)}; may be shown single updates by consent")
    for rules in roster.sharding:
        sizes = rules.sizes(len(roster.members))
        console().print(
            f"{len(sizes)} shards of {min(sizes)} to {max(sizes)} members, drawn by {rules.source}; at most "
            f"{rules.corrupt} of all members conspire, then no more than {roster.c_max} in one shard"
        )
        if rules.redraws:
            console().print(f"after a spoiled sum the next round is in other shards; {rules.redraws} such draws")
    for step in roster.releases:
        old, new = ", ".join(step.old_u3), ", ".join(step.new_u3)
        console().print(f"release of {step.part} on {step.base_model_hash.hex()[:16]}: {old} -> {new}")


def _named(texts: list[str] | None, file: Path | None) -> list[Member]:
    """Members by option and from a file."""
    named = [_member(text) for text in texts or ()]
    if file is not None:
        try:
            lines = file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"{file} cannot be read as a list of members: {error}") from error
        named += [_member(line, str(file)) for line in lines]
    return named


def _merged(old: tuple[Member, ...], new: list[Member]) -> tuple[Member, ...]:
    return _sorted(list(({member.id: member for member in old} | {member.id: member for member in new}).values()))


def _member(text: str, where: str = "--member") -> Member:
    return _with_key(text, where, Member)


def _auditors(text: str | None) -> tuple[Auditor, ...]:
    return () if text is None else (_with_key(text, "--auditor", Auditor),)


def _with_key(text: str, where: str, made: Callable[[str, bytes], T]) -> T:
    name, equals, key = text.partition("=")
    if not equals:
        raise OperatorError(f"{where} {quoted(text)} must be ID=PUBHEX: the id, an equals sign, the public key in hex")
    try:
        return made(name, _hex(key, 32))
    except (ValueError, OperatorError) as error:
        raise OperatorError(f"{where} {quoted(name)} must be ID=PUBHEX: {error}") from error


def _sorted(members: list[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.id.encode()))


def _ids(text: str) -> tuple[str, ...]:
    return tuple(sorted({name.strip() for name in text.split(",") if name.strip()}, key=str.encode))


def _hex(text: str, size: int) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise OperatorError(f"{quoted(text)} is not {2 * size} hex digits")
    return raw
