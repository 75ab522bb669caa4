"""``rounds.csv`` in the state folder: a line a round, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from fedddpm.files.atomic import write_atomic
from fedddpm.monitoring.round_entry import RoundEntry, RoundObserver

FILE = "rounds.csv"
_PRIVATE = 0o600  # losses and norms of one institution


class RoundsTable(RoundObserver):
    """Writes the whole table each time: it is as before or as it should be, whatever happens meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.name, self._path = FILE, folder / FILE

    def observe(self, entries: Sequence[RoundEntry], new: Sequence[RoundEntry]) -> None:
        """Write every line; CheckpointError if the disk does not take it."""
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(RoundEntry)], lineterminator="\n")
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in asdict(entry).items()} for entry in entries)
        write_atomic(self._path, text.getvalue().encode(), _PRIVATE)


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
