"""What is written down of each round, as it becomes known: figures for tables, in the state's own database.

A file that is appended to loses its last line in a kill at the wrong moment; a table made from these notes does not.
No rule of the protocol reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm.state.folder import StateFolder

Figure = str | int | float | bool | None


@dataclass(frozen=True)
class RoundNote:
    """What is known of one round."""

    run: str
    round: int  # from 0
    figures: Mapping[str, Figure]


class RoundNotes:
    """The notes of a state folder."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def add(self, run: str, round_: int, **figures: Figure) -> None:
        """Add to what is known of a round, durably; what has a name already is replaced.

        Raises:
            StateError: the disk does not take it.
        """
        with self._state.transaction() as db:
            row = db.execute("SELECT figures FROM round_notes WHERE run = ? AND round = ?", (run, round_)).fetchone()
            known = {} if row is None else json.loads(row[0])
            db.execute(
                "INSERT INTO round_notes VALUES (?, ?, ?)"
                " ON CONFLICT (run, round) DO UPDATE SET figures = excluded.figures",
                (run, round_, json.dumps({**known, **figures})),
            )

    def all(self) -> list[RoundNote]:
        """Every round that something is known of, in the order in which it became known."""
        with self._state.transaction() as db:
            rows = db.execute("SELECT run, round, figures FROM round_notes ORDER BY rowid").fetchall()
        return [RoundNote(run, round_, json.loads(figures)) for run, round_, figures in rows]
