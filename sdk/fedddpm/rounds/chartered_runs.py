"""Which run this institution takes part in: only one that the root signed, one at a time, and never an older one."""

from __future__ import annotations

from collections.abc import Sequence

from fedddpm.errors import PolicyError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity
from fedddpm.rounds.rollback_check import WentBackError
from fedddpm.rounds.run_history import RunHistory
from fedddpm.rounds.trust import STOP_AND_CALL
from fedddpm.state.charter_book import CharterBook
from fedddpm.state.folder import StateFolder
from fedddpm.transport.problems import ProblemError
from fedddpm_protocol.agreement.charter import Charter, open_charter
from fedddpm_protocol.agreement.lineage import require_averaged
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import CharterError, OlderCharterError
from fedddpm_protocol.wire.messages import SignedDocument


class CharteredRuns:
    """Holds what the aggregator offers against the root's signatures; ``must_approve``: somebody here agrees first."""

    def __init__(
        self, state: StateFolder, root_public_key: bytes, history: RunHistory, reporter: Reporter, *, must_approve: bool
    ) -> None:
        self._state, self._root, self._history, self._reporter = state, root_public_key, history, reporter
        self._book, self._must_approve = CharterBook(state), must_approve
        self._asked_for = 0  # number of the charter of which it was said that it waits
        self.is_waiting = False  # for somebody here to approve a charter

    def rounds_of(self, run: str) -> int | None:
        """Rounds of a run by its charter; None where none was accepted."""
        charter = self._book.of_run(run)
        return None if charter is None else charter.rounds

    def check_results(self, results: Sequence[RoundResult]) -> None:
        """ResultError where a result names models as the charter of its run does not have them."""
        for result in results:
            charter = self._book.of_run(result.run)
            if charter is not None:
                require_averaged(result, charter)

    def accept(self, document: SignedDocument | None, run: str, roster: Roster) -> Charter | None:
        """The charter of the run that goes on, durable before anything is trained under it; None until it is approved.

        Raises:
            SignatureError: another key than the root's signed it.
            CharterError: there is none, it is of another federation, or two share a number.
            WentBackError: an older one than was seen here.
            PolicyError: the run before it is not over.
        """
        if document is None:
            raise CharterError(
                f"run {run} has no charter: nobody but the aggregator says what is trained in it, and it is refused."
                " Runs from before charters cannot go on; the coordinator ends it and signs a new one (federation"
                " sign-run)",
                "aggregator",
            )
        charter = open_charter(document, self._root)
        if charter.federation != roster.federation:
            raise CharterError(f"the charter is for federation {charter.federation!r}, not {roster.federation!r}")
        known = self._book.newest
        if known is not None and charter.number > known.charter.number:
            self._require_over(known.charter, charter, roster)
        try:
            self._book.write(document, charter, approved=not self._must_approve)
        except OlderCharterError as error:
            raise WentBackError(str(error), STOP_AND_CALL) from error
        return charter if self._is_approved(charter) else None

    def _require_over(self, before: Charter, charter: Charter, roster: Roster) -> None:
        """PolicyError where a run would begin beside another one."""
        position = self._state.position(before.run)
        if position is None or position.finished or before.run in charter.ends:
            return
        try:
            done = self._history.rounds_done(position, roster)
        except ProblemError:  # its results are nowhere any more
            done = position.next_round
        if done < before.rounds:
            raise PolicyError(
                f"charter {charter.number} begins run {charter.run} while run {before.run} is at round {done} of"
                f" {before.rounds}, and does not say that it ends it: a second run beside one is refused",
                f"The coordinator signs the new run anew with: federation sign-run --ends {before.run}",
            )

    def _is_approved(self, charter: Charter) -> bool:
        known = self._book.newest
        self.is_waiting = self._must_approve and (known is None or not known.is_approved)
        if not self.is_waiting:
            return True
        if self._asked_for != charter.number:
            self._asked_for = charter.number
            self._reporter.warning(
                f"run {charter.run} (charter {charter.number}) waits until somebody here agrees to it: fedddpm approve"
                f" --state-dir {self._state.path}",
                "charter-waits",
            )
        self._reporter.waiting("waiting until the run is approved here", Activity.WAITING)
        return False
