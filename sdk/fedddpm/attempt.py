"""One attempt at one round: a session for each part that this institution reports, driven side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedddpm.contribution import scaled_pieces
from fedddpm.errors import PolicyError
from fedddpm.local_update import LocalUpdate
from fedddpm.session_driver import Seat, SessionDriver
from fedddpm.transport import Transport
from fedddpm_protocol.api import SessionState
from fedddpm_protocol.messages import SignedDocument
from fedddpm_protocol.methods import Method, reporters_by_session
from fedddpm_protocol.roster import Roster
from fedddpm_protocol.spec import RoundSpec


class Attempt:
    """The sessions of one specification; ``notice`` is told when one of them goes on without this institution."""

    def __init__(
        self,
        document: SignedDocument,
        spec: RoundSpec,
        seat: Seat,
        transport: Transport,
        update: LocalUpdate,
        notice: Callable[[str], None],
    ) -> None:
        self.document, self.spec, self.update = document, spec, update
        self._notice = notice
        pieces = scaled_pieces(spec, update.sent)
        if pieces.factor < 1:
            notice(f"the update's norm {pieces.norm:.3g} was scaled down to the agreed {spec.clip_norm:.3g}")
        self._drivers = {
            name: SessionDriver(seat, transport, spec, name, update, pieces)
            for name in pieces.by_part
            if seat.member_id in expected_reporters(spec, seat.roster, name)
        }

    @property
    def done(self) -> bool:
        """Whether only the result is missing."""
        return all(driver.done for driver in self._drivers.values())

    @property
    def left(self) -> str | None:
        """Why this institution is out of a session of the attempt, if it is."""
        return next((driver.left for driver in self._drivers.values() if driver.left), None)

    def advance(self, sessions: Mapping[str, SessionState]) -> None:
        """Take every step that the phases of the sessions allow; raises as ``SessionDriver.advance``."""
        for part, driver in self._drivers.items():
            if part in sessions and not driver.done:
                joined = driver.joined
                driver.advance(sessions[part].phase)
                if driver.joined and not joined:
                    self._notice(f"round {self.spec.round + 1}, part {part}: joined")
                if driver.left is not None:
                    reason = sessions[part].reason or driver.left
                    self._notice(f"round {self.spec.round + 1}, part {part}: out of this attempt ({reason})")

    def leave(self, reason: str) -> None:
        """Give up what is not done: a newer specification or result is there."""
        for driver in self._drivers.values():
            if not driver.done:
                driver.leave(reason)

    def check_newer_roster(self, roster: Roster) -> None:
        """Leave sessions whose cohort a newer roster no longer allows."""
        for driver in self._drivers.values():
            driver.check_newer_roster(roster)


def expected_reporters(spec: RoundSpec, roster: Roster, part: str) -> tuple[str, ...]:
    """Who uploads a part in this attempt."""
    return reporters_by_session(Method(spec.method), spec.hash, roster.ids)[part]


def require_enough_reporters(spec: RoundSpec, roster: Roster, floor: int) -> None:
    """PolicyError where a part has fewer reporters than the smallest sum this institution accepts."""
    for part in spec.parts:
        reporters = expected_reporters(spec, roster, part.name)
        if len(reporters) < floor:
            raise PolicyError(
                f"{spec.method} gives part {part.name!r} only {len(reporters)} of {len(roster.members)} institutions,"
                f" too few to hide one update ({floor} are needed)",
                "Call the federation's coordinator: the run needs FULL, ULATDEC or UDEC, or at least"
                f" {2 * floor} institutions for USPLIT, unless the min_cohort of your policy is above the roster's",
            )
