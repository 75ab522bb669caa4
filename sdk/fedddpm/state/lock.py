"""One process at a time works with a state folder, and only its own user can look into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from fedddpm.errors import StateError


def lock_folder(folder: Path) -> IO[str]:
    """Make the folder if need be and lock it until the file is closed; StateError if another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _close_to_others(folder)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise StateError(
            f"the state folder {folder} cannot be used ({error.strerror})", "Choose a writable folder"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StateError(
            f"another process (number {holder}) works with the state folder {folder}",
            "Wait for it or stop it; two institutions on one machine need a state_dir each",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _close_to_others(folder: Path) -> None:
    """Take a new or own folder away from other users: it holds counts, losses and trained weights that never leave."""
    ours = (folder / "lock").exists() or not any(folder.iterdir())
    if ours and folder.stat().st_mode & 0o077:
        with contextlib.suppress(PermissionError):  # a mounted folder of somebody else
            folder.chmod(0o700)
