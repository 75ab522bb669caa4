"""Who is told of each round, by the settings below ``[observe]``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedddpm.config import ObserveOptions
from fedddpm.errors import ConfigError
from fedddpm.monitoring.mlflow_store import MlflowStore
from fedddpm.monitoring.round_entry import RoundObserver
from fedddpm.monitoring.rounds_table import RoundsTable
from fedddpm.monitoring.tensorboard_files import TensorBoardFiles

_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}  # of each extra


def require_packages(options: ObserveOptions) -> None:
    """ConfigError unless everybody who is to be told of rounds is installed; nothing is loaded for it."""
    for extra, packages in _PACKAGES.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing and getattr(options, extra) is not None:
            raise ConfigError(
                f"[observe] {extra} needs packages that are not installed: {', '.join(missing)}",
                f"Run: pip install 'fedddpm-sdk[{extra}]', or remove the setting",
            )


@contextmanager
def open_observers(options: ObserveOptions, state_dir: Path, member_id: str) -> Iterator[Sequence[RoundObserver]]:
    """Everybody who is told of rounds, while inside: the table of the state folder, and who is named."""
    observers: list[RoundObserver] = [RoundsTable(state_dir)]
    if options.tensorboard is not None:
        observers.append(TensorBoardFiles(options.tensorboard))
    if options.mlflow is not None:
        observers.append(MlflowStore(str(options.mlflow), member_id, allow_remote=options.allow_remote))
    try:
        yield observers
    finally:
        for observer in observers:
            with suppress(Exception):  # what it was told is written already, or was warned of
                observer.close()
