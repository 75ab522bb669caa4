"""One attempt at one round: a session for each part that this institution reports, driven side by side."""

from __future__ import annotations

from collections.abc import Mapping

from fedddpm.errors import PolicyError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity
from fedddpm.rounds.session import Seat, SessionDriver
from fedddpm.rounds.trust import AcceptedSpec
from fedddpm.transport.endpoints import FederationApi
from fedddpm.updates.contribution import scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import members_of, session_of
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.wire.api import SessionState


class Attempt:
    """The sessions of one specification; ``reporter`` is told how far they are, and when one goes on without us."""

    def __init__(
        self,
        accepted: AcceptedSpec,
        seat: Seat,
        transport: FederationApi,
        update: LocalUpdate,
        reporter: Reporter,
    ) -> None:
        self.document, self.spec = accepted.document, accepted.spec
        self._reporter = reporter
        self.pieces = scaled_pieces(self.spec, update.sent)
        ours = (session_of(accepted.roster, part, seat.member_id, self.spec.draw) for part in self.spec.summed)
        self._drivers = {
            session: SessionDriver(seat, transport, accepted, session, update, self.pieces)
            for session in ours
            if seat.member_id in session_plan(self.spec, accepted.roster, session).reporters
        }

    def advance(self, sessions: Mapping[str, SessionState]) -> None:
        """Take every step that the phases of the sessions allow; raises as ``SessionDriver.advance``."""
        for session, driver in self._drivers.items():
            if session in sessions and not driver.done:
                joined, uploaded = driver.joined, driver.uploaded
                driver.advance(sessions[session].phase)
                if driver.joined and not joined:
                    self._tell(session, Activity.JOINED, "joined")
                if driver.uploaded and not uploaded:
                    self._tell(session, Activity.UPLOADED, f"uploaded, {driver.upload_bytes / 1e6:.2f} MB")
                if driver.left is not None:
                    reason = sessions[session].reason or driver.left
                    self._tell(session, Activity.SITTING_OUT, f"out of this attempt ({reason})")

    def _tell(self, session: str, activity: Activity, what: str) -> None:
        self._reporter.reached(activity, f"round {self.spec.round + 1}, part {session}: {what}", {"part": session})

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done in any of its sums."""
        return all(driver.done for driver in self._drivers.values())

    def leave(self, reason: str) -> None:
        """Give up what is not done: a newer specification or result is there."""
        for driver in self._drivers.values():
            if not driver.done:
                driver.leave(reason)

    def check_newer_roster(self, roster: Roster) -> None:
        """Leave sessions whose cohort a newer roster no longer allows."""
        for driver in self._drivers.values():
            driver.check_newer_roster(roster)


def require_enough_reporters(accepted: AcceptedSpec, member: str) -> None:
    """PolicyError where the member's sum of a part has fewer reporters than the smallest that it accepts."""
    spec, roster, floor = accepted.spec, accepted.roster, accepted.floor
    for part in spec.summed:
        session = session_of(roster, part, member, spec.draw)
        reporters = session_plan(spec, roster, session).reporters
        members = members_of(Method(spec.method), roster, session, spec.draw, spec.turn)
        if len(reporters) < floor:
            raise PolicyError(
                f"{spec.method} gives part {session!r} only {len(reporters)} of {len(members)} institutions,"
                f" too few to hide one update ({floor} are needed)",
                "Call the federation's coordinator: the run needs FULL, ULATDEC or UDEC, or at least"
                f" {2 * floor} institutions for USPLIT, unless the min_cohort of your policy is above the roster's",
            )
