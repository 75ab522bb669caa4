"""Signed charters as files, and the number of the next one. Offline: needs no server."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.administration.roster_files import read_document
from fedddpm_protocol.agreement.charter import Charter, open_charter
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import MalformedError, ProtocolError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.untrusted.redaction import shown
from fedddpm_protocol.wire.messages import SignedDocument

SUFFIX = ".json"
_MOST_BYTES = 64 * 2**10  # of a file that is taken for a charter


def form_of(path: Path, document: SignedDocument) -> Roster | Charter:
    """What a signed file holds, whoever signed it; OperatorError if it is neither a roster nor a charter."""
    with contextlib.suppress(MalformedError):
        return canonical.decode(Charter, document.body)
    with contextlib.suppress(MalformedError):
        return canonical.decode(Roster, document.body)
    raise OperatorError(f"{path} is neither a signed roster nor a signed charter; compare the versions of the programs")


def read_charter(path: Path, root_public_key: bytes) -> Charter:
    """The charter in a file, signed by this root; OperatorError."""
    try:
        return open_charter(read_document(path, "charter"), root_public_key)
    except ProtocolError as error:
        raise OperatorError(f"{path} does not hold: {error}") from error


def newest_beside(path: Path, federation: str, root_public_key: bytes) -> tuple[Path, Charter] | None:
    """The charter of the highest number that this root signed for the federation, in the folder of ``path``."""
    found: list[tuple[Path, Charter]] = []
    for other in sorted(path.parent.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OperatorError, OSError):
            if other.is_file() and other.stat().st_size <= _MOST_BYTES:
                charter = read_charter(other, root_public_key)
                if charter.federation == federation:
                    found.append((other, charter))
    return max(found, key=lambda one: one[1].number, default=None)


def require_new_file(path: Path) -> None:
    """OperatorError where no charter can be written; to be told before anything is signed."""
    if path.suffix != SUFFIX:
        raise OperatorError(f"{shown(path)} must end in {SUFFIX}: charters are numbered by those that lie beside them")
    if path.exists():
        raise OperatorError(f"{shown(path)} exists; a charter is never changed. Choose another file")


def write_charter(path: Path, document: SignedDocument) -> None:
    """Write a new file, whole or not at all; OperatorError, also if it exists by now."""
    require_new_file(path)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w") as file:
            file.write(document.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # where a rename would replace what somebody else wrote meanwhile
    except OSError as error:
        raise OperatorError(f"{shown(path)} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
