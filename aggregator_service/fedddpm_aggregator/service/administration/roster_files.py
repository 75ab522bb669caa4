"""Signed rosters as files, and the steps that make the next version. Offline: needs no server."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedddpm_aggregator.errors import OperatorError
from fedddpm_protocol.agreement.model_layout import HASH_BYTES
from fedddpm_protocol.agreement.roster import Roster, Sharding, open_roster, sign_roster
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.untrusted.redaction import shown
from fedddpm_protocol.wire.messages import SignedDocument


def read_document(path: Path, what: str = "roster") -> SignedDocument:
    """The signed roster, or ``what`` else, in a file; OperatorError."""
    try:
        return SignedDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise OperatorError(f"{path} is no signed {what}") from error


def read_signed(path: Path, root_public_key: bytes) -> SignedDocument:
    """The roster in a file as this root signed it; OperatorError."""
    document = read_document(path)
    _opened(path, document, root_public_key)
    return document


def read_roster(path: Path, root: SigningKey) -> Roster:
    """The roster in a file, signed by ``root``; OperatorError."""
    return _opened(path, read_document(path), root.public_key)


def _opened(path: Path, document: SignedDocument, root_public_key: bytes) -> Roster:
    try:
        return open_roster(document, root_public_key)
    except ProtocolError as error:
        raise OperatorError(f"{path} is not signed by this root key: {error}") from error


def write_roster(path: Path, roster: Roster, root: SigningKey, *, new: bool) -> None:
    """Sign and store; an existing file is replaced whole, and only by a later version."""
    if new and path.exists():
        raise OperatorError(f"{path} exists; change it with roster add, remove or release")
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(sign_roster(roster, root).model_dump_json(indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror}") from error


def next_version(roster: Roster, **changes: Any) -> Roster:
    """The roster with some fields changed and the version one higher; OperatorError if it breaks a rule.

    Other members in shards are drawn anew: who knew the seed before it was signed could choose an id by it.
    """
    fields = {field.name: getattr(roster, field.name) for field in dataclasses.fields(roster)} | changes
    if fields["members"] != roster.members and "sharding" not in changes:
        fields["sharding"] = tuple(new_draw(old.size, old.corrupt, redraws=old.redraws) for old in roster.sharding)
    return make_roster(**{**fields, "version": roster.version + 1})


def make_roster(**fields: Any) -> Roster:
    """A roster of these fields, c_max and n_min as high as its shards need them; OperatorError if it breaks a rule."""
    try:
        for rules in fields.get("sharding", ()):
            fields["c_max"] = max(fields["c_max"], rules.needed_c_max(len(fields["members"])))
            fields["n_min"] = max(fields["n_min"], fields["c_max"] + 2)
        return Roster(**fields)
    except ValueError as error:
        raise OperatorError(f"this roster is not possible: {error}") from error


def new_draw(
    size: int, corrupt: int, seed: bytes | None = None, source: str | None = None, *, redraws: int = 0
) -> Sharding:
    """Shards drawn by the root's own randomness, or by a ``seed`` from a named ``source``; OperatorError."""
    if (seed is None) != (source is None):
        raise OperatorError("a seed from elsewhere needs the name of its source, and a source its seed")
    try:
        fresh = seed or secrets.token_bytes(HASH_BYTES)
        return Sharding(size, corrupt, fresh, source or "the root's own randomness", redraws)
    except ValueError as error:
        raise OperatorError(f"these shards are not possible: {error}") from error
