"""Rounds as an MLflow run: in a folder or database of this machine, or where a setting allows it elsewhere.

MLflow tells its makers how it is used unless told not to; here it is always told not to.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fedddpm.config import is_local_store
from fedddpm.errors import ConfigError
from fedddpm.monitoring.round_entry import RoundEntry, RoundObserver

EXPERIMENT = "fedddpm"
_SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # rounds go on without it
_DATABASE, _ARTIFACTS = "mlflow.db", "artifacts"


class MlflowStore(RoundObserver):
    """One MLflow run for each federated run and institution, found again after a restart.

    ``target`` is a folder or its ``file:`` URI (it gets a database and the pictures), ``sqlite:///file``, or any
    other tracking URI where ``allow_remote`` is set.
    """

    def __init__(self, target: str, member_id: str, *, allow_remote: bool = False) -> None:
        folder = _folder_of(target)
        # Of another store only the kind is told: its address may hold a password.
        self.name = f"mlflow {folder or urlsplit(target).scheme}"
        self._member, self._folder, self._allow_remote = member_id, folder, allow_remote
        self._uri = target if folder is None else f"sqlite:///{folder.absolute() / _DATABASE}"
        self._client: Any = None
        self._runs: dict[str, str] = {}  # MLflow's ids, by run

    def observe(self, entries: Sequence[RoundEntry], new: Sequence[RoundEntry]) -> None:
        """The figures of each new round, all at once."""
        for entry in new:
            ended_s = time.time() if entry.ended is None else datetime.fromisoformat(entry.ended).timestamp()
            with _quiet():
                run, metric = self._run_of(entry.run), importlib.import_module("mlflow.entities").Metric
                points = [
                    metric(name, value, int(1000 * ended_s), entry.round) for name, value in entry.figures.items()
                ]
                self._client.log_batch(run, metrics=points)

    def show(self, entry: RoundEntry, picture: Path) -> None:
        """The picture of the newest round, as a file of the run."""
        with _quiet():
            self._client.log_artifact(self._run_of(entry.run), str(picture), "samples")

    def _run_of(self, run: str) -> str:
        if run not in self._runs:
            experiment = self._experiment()
            tags = {"fedddpm.run": run, "fedddpm.institution": self._member}
            wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            found = self._client.search_runs([experiment], filter_string=wanted, max_results=1)
            one = found[0] if found else self._client.create_run(experiment, run_name=run, tags=tags)
            self._runs[run] = one.info.run_id
        return self._runs[run]

    def _experiment(self) -> str:
        """The id of the experiment; ConfigError where its files would go to another machine."""
        place = None
        if self._folder is not None:
            place = _for_us_alone(self._folder / _DATABASE, self._folder / _ARTIFACTS)
        elif is_local_store(self._uri):
            database = _database_of(self._uri)
            place = _for_us_alone(database, Path(f"{database}.{_ARTIFACTS}"))
        if self._client is None:
            self._client = _client(self._uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=place))
        if not self._allow_remote and not is_local_store(found.artifact_location):
            raise ConfigError(
                f"the experiment {EXPERIMENT!r} of this MLflow store keeps its files on another machine",
                "Name another store below [observe], or set allow_remote = true if that is meant",
            )
        return str(found.experiment_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings on stderr, which are for MLflow's own developers, and with the log as it was.

    Its database migrations set up logging anew for the whole process.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def _client(uri: str) -> Any:
    """MLflow's client of a store, without a word to its makers and without lines on stderr."""
    os.environ.update(_SILENT)
    for name, value in _QUICK.items():
        os.environ.setdefault(name, value)
    package = importlib.import_module("mlflow.tracking")
    for talkative in ("mlflow", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    return package.MlflowClient(tracking_uri=uri)


def _for_us_alone(database: Path, files: Path) -> str:
    """Make what MLflow writes to, readable by nobody else; the URI of the folder for files."""
    for folder in (database.parent, files):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database.touch(mode=0o600, exist_ok=True)
    return files.absolute().as_uri()


def _folder_of(target: str) -> Path | None:
    """The folder that is meant; None where ``target`` is the URI of something else."""
    if target.lower().startswith("file:"):
        return Path(unquote(urlsplit(target).path))
    return Path(target) if is_local_store(target) and not target.lower().startswith("sqlite") else None


def _database_of(uri: str) -> Path:
    """The file of a SQLite URI: three slashes and a relative path, or four and an absolute one."""
    return Path(uri.partition(":///")[2].partition("?")[0] or EXPERIMENT)
