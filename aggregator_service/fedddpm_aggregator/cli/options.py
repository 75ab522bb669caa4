"""Options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import Settings

Data = Annotated[
    Path, typer.Option(help="the aggregator's data directory", envvar="FEDDDPM_AGGREGATOR_DATA", file_okay=False)
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="SQLAlchemy URL, e.g. postgresql://user@host/name; by default a SQLite file in the data directory",
        envvar="FEDDDPM_AGGREGATOR_DATABASE_URL",
    ),
]
Blobs = Annotated[
    str | None,
    typer.Option(
        help="where vectors are kept: a directory or s3://bucket/prefix (AWS_* variables); by default DATA/blobs",
        envvar="FEDDDPM_AGGREGATOR_BLOBS",
    ),
]


def settings_of(data: Path, database_url: str | None, changes: Mapping[str, object] | None = None) -> Settings:
    """Settings from arguments, the rest from the environment."""
    return Settings(data=data, database_url=database_url, **(changes or {}))  # type: ignore[arg-type]


@contextlib.contextmanager
def opened(settings: Settings, root: bytes | None = None) -> Iterator[Context]:
    """The data directory for one command; works beside a running server. OperatorError for another root's database."""
    ctx = open_context(settings, root)
    try:
        yield ctx
    finally:
        ctx.database.close()
