"""Members that the aggregator keeps out: each institution checks the evidence itself, and says what it found.

Evidence that holds also counts in the ledger: a sum that a convicted member is in may be made again without it.
"""

from __future__ import annotations

from fedddpm.monitoring.reporter import Reporter
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ProblemError
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import EvidenceError, ProtocolError, StaleRosterError, StaleSpecError
from fedddpm_protocol.session.verdicts import Conviction, verify_evidence
from fedddpm_protocol.wire.api import Exclusion, RunState


class Exclusions:
    """What is known of excluded members; each piece of evidence is fetched and checked once."""

    def __init__(self, transport: FederationApi, ledger: SpentLedger, member_id: str, reporter: Reporter) -> None:
        self._transport, self._ledger, self._member, self._reporter = transport, ledger, member_id, reporter
        self._known: set[str] = set()

    def learn(self, current: RunState, roster: Roster) -> None:
        """Check what the aggregator gives as reasons for those that it keeps out now."""
        for one in current.excluded:
            if one.evidence not in self._known:
                self._known.add(one.evidence)
                self._check(one, roster)

    def keep_out(self, current: RunState) -> bool:
        """Whether this institution itself is not admitted now."""
        return any(one.member == self._member for one in current.excluded)

    def _check(self, told: Exclusion, roster: Roster) -> None:
        try:
            conviction = self._verified(told, roster)
        except (StaleSpecError, StaleRosterError):
            return self._reporter.notice(f"{told.member} was kept out under another roster than the one at hand")
        except (ProtocolError, ProblemError) as error:
            return self._reporter.warning(
                f"the aggregator keeps {told.member} out ({told.words}), and the evidence that it gives does not hold:"
                f" {error}. Tell the federation's coordinator"
            )
        if told.member == self._member:
            return self._reporter.warning(
                f"this institution sits out the next attempts: {conviction.verdict.words}, by what it signed itself."
                " Have this machine and its program looked at, and call the federation's coordinator: a newer roster"
                " admits it again"
            )
        return self._reporter.notice(
            f"{told.member} sits out the next attempts: {conviction.verdict.words}. The evidence holds",
            "excluded",
            {"member": told.member, "offence": str(conviction.verdict.offence), "evidence": told.evidence},
        )

    def _verified(self, told: Exclusion, roster: Roster) -> Conviction:
        evidence = self._transport.evidence(told.evidence)
        conviction = verify_evidence(roster, evidence)
        if evidence.sha256 != told.evidence or conviction.verdict.member != told.member:
            raise EvidenceError("it is about somebody else", "aggregator")
        self._ledger.convict(conviction, evidence)
        return conviction
