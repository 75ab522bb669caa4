"""Signed rosters as files, and the steps that make the next version. Offline: needs no server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import ValidationError

from fedddpm_aggregator.errors import OperatorError
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.keys import SigningKey
from fedddpm_protocol.messages import SignedDocument
from fedddpm_protocol.roster import Roster, open_roster, sign_roster


def read_document(path: Path) -> SignedDocument:
    """The signed roster in a file; OperatorError."""
    try:
        return SignedDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise OperatorError(f"{path} is no signed roster") from error


def read_roster(path: Path, root: SigningKey) -> Roster:
    """The roster in a file, signed by ``root``; OperatorError."""
    try:
        return open_roster(read_document(path), root.public_key)
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


def next_version(roster: Roster, **changes: object) -> Roster:
    """The roster with some fields changed and the version one higher; OperatorError if it breaks a rule."""
    try:
        return dataclasses.replace(roster, version=roster.version + 1, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise OperatorError(f"this roster is not possible: {error}") from error
