"""Files that are either there whole or not there at all: temporary file, fsync, rename, fsync of the folder.

Tensors are safetensors (text metadata beside raw numbers): nothing that is read is ever executed. One process owns a
path; two writers of the same path at the same time are not supported.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedddpm.errors import CheckpointError

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space or choose another folder, then start again; nothing was lost",
    errno.EDQUOT: "Your quota is used up: free some space or choose another folder, then start again; nothing was lost",
    errno.EROFS: "The file system is read-only: choose a folder that can be written",
    errno.EACCES: "Choose a folder that this user may write",
    errno.EPERM: "Choose a folder that this user may write",
    errno.ENOENT: "The folder does not exist: create it first",
}
_OTHERWISE = "Check the disk and the folder, then start again; the previous file is intact"


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, never a mixture.

    ``mode`` holds from the first byte on, less the process's umask. The folder must exist.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written. The old file is intact.
    """
    # A fixed name: what a killed process leaves behind is overwritten next time instead of filling the disk.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        try:
            _write_and_sync(temporary, data, mode)
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror})", _ADVICE.get(error.errno or 0, _OTHERWISE)
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], mode: int = 0o644) -> None:
    """Write tensors and text metadata as one safetensors file, atomically.

    Raises:
        CheckpointError: see :func:`write_atomic`.
    """
    # safetensors wants row-major storage; weights kept as channels_last are copied into it.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, dict(metadata)), mode)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read (tensors on the CPU, metadata) from a safetensors file.

    Raises:
        CheckpointError: the file is missing, unreadable or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "Check the path") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})",
            "It is damaged or no safetensors file: fetch it again, or delete it",
        ) from error


def _write_and_sync(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # so that the mode below holds, whatever a killed process left here
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
