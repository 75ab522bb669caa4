"""The book of rounds: what each came to here is noted as it becomes known, and told to tables, curves and pictures.

Notes are on the disk before the round goes on, so a kill loses no line. Telling comes between two rounds, and what a
kill left untold when this start has done its part; whatever goes wrong with it is a warning: no round depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedddpm.errors import FedDDPMError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.round_entry import Painter, RoundEntry, RoundObserver
from fedddpm.rounds.summary import RoundSummary, means_of, survivors_of
from fedddpm.state.folder import StateFolder
from fedddpm.state.round_notes import RoundNote, RoundNotes
from fedddpm.updates.contribution import Pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec

_PICTURES = "pictures"  # the painter's name among the observers


class RoundBook:
    """Keeps the notes of ``state`` and tells ``observers`` and the ``painter`` of rounds that have a result."""

    def __init__(
        self,
        state: StateFolder,
        member_id: str,
        reporter: Reporter,
        observers: Sequence[RoundObserver] = (),
        painter: Painter | None = None,
    ) -> None:
        self._state, self._notes, self._member = state, RoundNotes(state), member_id
        self._reporter, self._observers, self._painter = reporter, observers, painter
        self._warned: set[str] = set()
        self._is_news, self._is_left = False, True  # after a start: what a kill left untold

    # --- as it becomes known ------------------------------------------------------------------------------------------

    def contributes(self, spec: RoundSpec, update: LocalUpdate, pieces: Pieces) -> None:
        """The own update of a round goes into its sum."""
        self._notes.add(
            spec.run,
            spec.round,
            steps=update.steps,
            images=update.samples,
            images_seen=update.images_seen,
            train_seconds=round(update.seconds, 3),
            train_loss=update.train_loss,
            loss_before=update.loss_before,
            loss_after=update.loss_after,
            norm=float(pieces.norm),
            clip_norm=float(spec.clip_norm),
            clip_factor=float(pieces.factor),
        )

    def follow(self, results: Sequence[RoundResult]) -> None:
        """Verified results came; some may come a second time, the first time counts."""
        known = {(note.run, note.round) for note in self._notes.all() if "ended" in note.figures}
        self._is_news = True
        for result in results:
            if (result.run, result.round) in known:
                continue
            survivors, (before, after) = survivors_of(result), means_of(result)
            self._notes.add(
                result.run,
                result.round,
                attempt=result.attempt + 1,
                ended=datetime.now(UTC).isoformat(timespec="seconds"),
                took_part=self._member in survivors,
                cohort=len({member for part in result.parts for member in part.cohort}),
                survivors=len(survivors),
                mean_loss_before=before,
                mean_loss_after=after,
            )

    def ended(self, summary: RoundSummary) -> None:
        """The round was taken, and is summed up."""
        seconds = round(summary.seconds, 3)
        self._notes.add(summary.run, summary.round, seconds=seconds, share=summary.share, cosine=summary.cosine)

    # --- to whoever wants to know -------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell everybody of the rounds that they were not told of yet; whoever fails is told again next round."""
        if not self._is_news:
            return
        self._is_news = False
        notes = [note for note in self._notes.all() if "ended" in note.figures]
        if not notes:
            return
        entries = [self._entry(note) for note in notes]
        picture = self._draw(notes[-1], entries)
        for observer in self._observers:
            fresh = [place for place, note in enumerate(notes) if not note.figures.get(_told(observer.name))]
            if not fresh and picture is None:
                continue
            try:
                observer.observe(entries, [entries[place] for place in fresh])
                for place in fresh:
                    self._notes.add(notes[place].run, notes[place].round, **{_told(observer.name): True})
                if picture is not None:
                    observer.show(entries[-1], picture)
            except Exception as error:  # noqa: BLE001  # of other people's programs: the round goes on
                self._warn(observer.name, f"{observer.name} could not be written", error)

    def tell_what_is_left(self) -> None:
        """As :meth:`tell`, of what an earlier start had no time to tell; once."""
        self._is_news, self._is_left = self._is_news or self._is_left, False
        self.tell()

    def _draw(self, note: RoundNote, entries: Sequence[RoundEntry]) -> Path | None:
        """The picture after the newest round, once."""
        if self._painter is None or note.figures.get(_told(_PICTURES)):
            return None
        trained = next((entry.train_seconds for entry in reversed(entries) if entry.train_seconds), None)
        try:
            picture = self._painter.draw(entries[-1], trained)
            self._notes.add(note.run, note.round, **{_told(_PICTURES): True})
        except Exception as error:  # noqa: BLE001  # a picture is worth no round
            self._warn(_PICTURES, "no pictures of this round", error)
            return None
        return picture

    def _warn(self, name: str, what: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self._reporter.warning(f"{what}: {_words(error)}. Rounds go on; this is said once")

    def _entry(self, note: RoundNote) -> RoundEntry:
        traffic, known = self._state.traffic(note.run, note.round), dict.fromkeys(_NOTED) | dict(note.figures)
        return RoundEntry(
            run=note.run,
            round=note.round + 1,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            **{name: known[name] for name in _NOTED},  # as they were noted above
        )


_NOTED = tuple(
    name for name in RoundEntry.__dataclass_fields__ if name not in ("run", "round", "bytes_up", "bytes_down")
)


def _words(error: Exception) -> str:
    """What went wrong; of other people's errors only the kind, for they may name an address with a password in it."""
    if isinstance(error, FedDDPMError):
        return str(error)
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or type(error).__name__


def _told(name: str) -> str:
    return f"told {name}"
