"""Taking part in rounds: wait for one, get its base model, train, contribute, take the result.

The loop holds no secret and nothing that cannot be lost: after a kill at any moment the same call goes on from the
state folder. What the aggregator says is checked by ``trust``; what is computed is done by ``round_update`` and
``session``; here is only the order of things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedddpm.data.image_set import require_labels
from fedddpm.errors import DataError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity, Work
from fedddpm.rounds.announcements import Announcements
from fedddpm.rounds.attempt import Attempt, require_enough_reporters
from fedddpm.rounds.chartered_runs import CharteredRuns
from fedddpm.rounds.exclusions import Exclusions
from fedddpm.rounds.guards.alarm_guard import AlarmGuard
from fedddpm.rounds.guards.share_guard import ShareGuard
from fedddpm.rounds.guards.sum_check import SumCheck
from fedddpm.rounds.institution import Institution
from fedddpm.rounds.model_store import ModelStore
from fedddpm.rounds.rollback_check import RollbackCheck, WentBackError
from fedddpm.rounds.round_book import RoundBook
from fedddpm.rounds.round_update import RoundUpdate
from fedddpm.rounds.run_history import RunHistory
from fedddpm.rounds.session import Seat, send_owed
from fedddpm.rounds.summary import RoundSummary, append_summary, summarize
from fedddpm.rounds.trust import AcceptedSpec, accept_roster, accept_spec, require_enrolled
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.state.report import parameters_in
from fedddpm.state.restore_guard import RestoreGuard
from fedddpm.state.sealed_secrets import SealedSecretsBook
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ProblemError
from fedddpm.updates.error_feedback import ErrorFeedback
from fedddpm.updates.local_update import LocalUpdate
from fedddpm.updates.update_store import UpdateStore
from fedddpm.updates.work_floor import require_enough_work
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import ResultError, StaleSpecError
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.messages import SignedDocument

_APPROVAL_POLL_S = 2.0  # while somebody here has to agree to a run


class Participation:
    """The loop over rounds of one open state folder and one connection."""

    def __init__(
        self,
        institution: Institution,
        state: StateFolder,
        transport: FederationApi,
        reporter: Reporter,
        on_round: Callable[[RoundSummary], None],
        book: RoundBook | None = None,
    ) -> None:
        self._us, self._state, self._transport, self._reporter = institution, state, transport, reporter
        self._book = book or RoundBook(state, institution.member_id, reporter)
        self._on_round, self._telling = on_round, Announcements(reporter, state)
        self._ledger = SpentLedger(state)
        self._updates = UpdateStore(state.path)
        self._feedback = ErrorFeedback(state.path, institution.member_id)
        models = ModelStore(state, transport, reporter.transfer)
        config = institution.config
        self._alarms = AlarmGuard(state, config.policy, reporter)
        self._history = RunHistory(state, models, transport, reporter, self._follow, config.learning, config.policy)
        self._charters = CharteredRuns(
            state, institution.root_public_key, self._history, reporter, must_approve=config.policy.approve_runs
        )
        self._own = RoundUpdate(
            institution,
            state,
            transport,
            self._ledger,
            self._updates,
            self._feedback,
            self._history,
            reporter,
            self._telling,
        )
        keeps = config.policy.keep_for_auditor
        self._seat = Seat(institution.identity, institution.member_id, state, self._ledger, reporter.uploading, keeps)
        self._sealed = SealedSecretsBook(state)
        self._shares = ShareGuard(state, institution.member_id, institution.config.policy, reporter.warning)
        self._sums = SumCheck(
            state,
            transport,
            models,
            institution.member_id,
            institution.root_public_key,
            institution.config.policy,
            reporter,
        )
        self._exclusions = Exclusions(transport, self._ledger, institution.member_id, reporter)
        self._guard = RestoreGuard(state, institution.config.after_restore)
        self._roster: Roster | None = None
        self._attempt: Attempt | None = None
        self._sat_out: SignedDocument | None = None  # a specification that is not for us
        self._left_run = ""  # an earlier run whose last results were asked for
        self._version = 0
        self._stale_state, self._stale_spec = RollbackCheck(reporter.notice), RollbackCheck(reporter.notice)
        self._round_began = time.monotonic()

    def run(self, rounds: int | None) -> list[RoundSummary]:
        """Take part until ``rounds`` rounds ended, or the run did and nobody stands by; one summary for each."""
        summaries: list[RoundSummary] = []
        while rounds is None or len(summaries) < rounds:
            current = self._poll()
            with self._reporter.busy(Work.PROTOCOL):
                # First what a crash left owed: everybody's sum may be waiting for this answer.
                self._send_owed()
                summaries += self._take_last_results(current)
                taken = self._take_results(current)
                self._check_sums(current.run)
            self._book.tell()
            summaries += taken
            over = current.run is not None and current.status == "finished"
            if current.run is not None and over:
                self._telling.run_over(current.run)
                self._sealed.clear()
            if (over and not self._us.config.stand_by) or (rounds is not None and len(summaries) >= rounds):
                self._book.tell_what_is_left()
                break
            if over:
                self._stand_by()
            elif taken and taken[-1].round >= current.results:
                continue  # rounds went on while these results were taken: what was polled is of the past
            else:
                with self._stale_spec.once():
                    self._contribute(current)
                if self._attempt is None or self._attempt.is_over:
                    self._book.tell_what_is_left()
            self._count_traffic(current)
        return summaries

    def _stand_by(self) -> None:
        """A run is over: keep nothing of its last attempt, and let the clock of the next round begin anew."""
        if self._attempt is not None:
            self._attempt.leave("the run is over")
            self._attempt = None
        self._round_began = time.monotonic()
        self._stale_spec.is_open = False
        self._reporter.waiting("standing by for the next run", Activity.STANDING_BY)

    # --- what the aggregator says -------------------------------------------------------------------------------------

    def _poll(self) -> RunState:
        """What goes on, and the newest roster at hand; PolicyError where two answers say that it went back."""
        while True:
            with self._stale_state.once():
                return self._ask()

    def _ask(self) -> RunState:
        if self._stale_state.is_open or self._stale_spec.is_open:
            self._version = 0  # a fresh answer, and no wait for news
        poll_s = self._us.config.network.poll_s
        wait_s = min(poll_s, _APPROVAL_POLL_S if self._charters.is_waiting else poll_s) if self._version else 0
        current = self._transport.state(self._version, wait_s)
        if current.version < self._version:
            self._stale_state.ask_again("the aggregator's state is older than the one before")
            current = self._transport.state(0, 0)
        self._version = current.version
        if self._roster is None or current.roster_version > self._roster.version:
            self._refresh_roster()
        elif current.roster_version < self._roster.version:
            raise WentBackError(
                f"the aggregator went back to roster version {current.roster_version} from {self._roster.version}",
                "Stop, and call the federation's coordinator before you go on",
            )
        return current

    def _refresh_roster(self) -> None:
        document = self._transport.roster()
        self._roster = accept_roster(document, self._us.root_public_key, self._state)
        self._telling.auditor(self._roster.auditor, kept=self._seat.keeps_for_auditor)
        require_enrolled(self._roster, self._us.identity, self._us.member_id)
        self._state.bind_member()
        if self._attempt is not None:
            self._attempt.check_newer_roster(self._roster)

    def _send_owed(self) -> None:
        for owed in self._ledger.owed():
            send_owed(self._transport.session(owed.spec_hash, owed.session), self._ledger, owed)

    # --- results ------------------------------------------------------------------------------------------------------

    def _follow(self, results: Sequence[RoundResult]) -> None:
        """Verified results, before anything is done with them."""
        self._charters.check_results(results)
        self._alarms.follow(results)
        self._book.follow(results)

    def _take_results(self, current: RunState) -> list[RoundSummary]:
        """Move to the newest base model if rounds ended since the last look."""
        position = None if current.run is None else self._state.position(current.run)
        if position is None or current.results <= position.next_round:
            return []
        return self._advance(position, self._charters.rounds_of(position.run) or current.rounds)

    def _take_last_results(self, current: RunState) -> list[RoundSummary]:
        """What an earlier run came to, if it ended and the next one began while this institution was away."""
        left = self._state.newest_position()
        if current.run is None or left is None or left.run in (current.run, self._left_run) or left.finished:
            return []
        self._left_run = left.run
        try:
            return self._advance(left, self._charters.rounds_of(left.run) or left.next_round)
        except ProblemError as problem:
            self._reporter.warning(f"what run {left.run} came to is not known here: {problem.happened}")
            return []

    def _advance(self, position: RunPosition, rounds: int) -> list[RoundSummary]:
        """Take the results after ``position``, of a run of so many rounds."""
        update = self._updates.load(position.base_model_hash)
        # After a restart the specification of a round that is over is not at hand: its model is then fetched whole.
        known = {} if self._attempt is None else {self._attempt.spec.hash: self._attempt.spec}
        results = self._history.advance(
            position,
            self._our_roster(),
            known,
            update,
            rounds,
            lambda result, *vectors: self._shares.measure(known.get(result.spec_hash), result, update, *vectors),
        )
        if not results:
            return []
        self._check_sums(position.run)
        if self._us.config.learning.error_feedback and position.method != Method.TURN:
            conspirators = self._our_roster().c_max
            self._feedback.after_results(position.run, position.next_round, results, known, update, conspirators)
        summaries = [self._summarize(result, update) for result in results]
        if self._attempt is not None:
            self._attempt.leave("the round is over")
            self._attempt = None
        self._sealed.clear()
        self._updates.clear()  # last: what a kill before this leaves is of a base model that is gone, and is not used
        return summaries

    def _check_sums(self, run: str | None) -> None:
        """Before anything is trained on it: whether the newest result is what was sent; after a kill once more."""
        position = None if run is None else self._state.position(run)
        if position is not None:
            self._sums.after(position)

    def _summarize(self, result: RoundResult, update: LocalUpdate | None) -> RoundSummary:
        self._state.add_traffic(result.run, result.round, self._transport.connection.meter.take())
        position = self._state.position(result.run)
        summary = summarize(
            result,
            self._us.member_id,
            update if update is not None and update.base_model_hash == result.base_model_hash else None,
            self._state.traffic(result.run, result.round),
            time.monotonic() - self._round_began,
            None if position is None else parameters_in(self._state.path / position.model_file),
            self._shares.after(result),
            self._sums.of(result),
        )
        append_summary(self._state.path, summary)
        self._book.ended(summary)
        self._telling.round_ended(summary)
        self._alarms.tell(result.run, result.round)
        self._on_round(summary)
        self._round_began = time.monotonic()
        return summary

    # --- contributing -------------------------------------------------------------------------------------------------

    def _contribute(self, current: RunState) -> None:
        """Go one step on in the attempt that the aggregator offers, or wait."""
        if current.spec is None or current.status == "waiting":
            return self._reporter.waiting("waiting for the coordinator to start a run", Activity.WAITING)
        if self._attempt is not None and self._attempt.document != current.spec:
            self._attempt.leave("a newer specification is there")
            self._telling.attempt_failed(self._attempt.spec)
            self._attempt = None
        if self._attempt is None and current.spec != self._sat_out:
            self._sat_out = None
            charter = self._charters.accept(current.charter, current.run or "", self._our_roster())
            if charter is None:
                return None  # until somebody here agrees to it
            self._attempt = None if self._is_kept_out(current) else self._begin(current.spec, charter)
            if self._attempt is None:
                self._sat_out = current.spec
        if self._attempt is None:
            return self._reporter.waiting("sitting out this attempt, waiting for the next", Activity.SITTING_OUT)
        with self._reporter.busy(Work.PROTOCOL):
            self._attempt.advance(current.sessions)
        return self._telling.waits(current)

    def _is_kept_out(self, current: RunState) -> bool:
        """Whether this institution is not admitted now; the evidence against whomever it is was checked then."""
        if not current.excluded:
            return False
        self._exclusions.learn(current, self._our_roster())
        return self._exclusions.keep_out(current)

    def _begin(self, document: SignedDocument, charter: Charter) -> Attempt | None:
        """Check the specification, get the base model, train or take the stored update; None to sit it out."""
        accepted = self._accept(document, charter)
        if accepted is None or not self._guard.admits(accepted.spec, self._reporter.notice):
            return None
        # Everything that may refuse comes before the training, which may take hours.
        require_enough_reporters(accepted, self._us.member_id)
        require_enough_work(accepted.spec, accepted.charter.training, len(self._us.images[0]), self._us.config.policy)
        self._shares.require_small(accepted.spec)
        self._telling.takes_part(accepted.spec)
        with self._reporter.busy(Work.PROTOCOL):
            # Who is new follows the chain of results first.
            position = self._history.arrive(accepted.spec, accepted.charter, accepted.roster)
        self._alarms.require_quiet(accepted.spec)
        update = self._own.of(accepted, position)
        if update is None:
            return None
        attempt = Attempt(accepted, self._seat, self._transport, update, self._reporter)
        self._telling.clipped(accepted.spec, attempt.pieces)
        self._book.contributes(accepted.spec, update, attempt.pieces)
        return attempt

    def _accept(self, document: SignedDocument, charter: Charter) -> AcceptedSpec | None:
        """What this institution agrees to; None for an attempt that the roster has left behind."""
        roster = self._our_roster()
        try:
            accepted = accept_spec(document, charter, roster, self._us.config.policy)
        except StaleSpecError:
            self._reporter.notice(
                f"this attempt was made for a roster older than version {roster.version}; waiting for the next"
            )
            return None
        self._require_fitting_images(accepted.spec.architecture)
        return accepted

    def _require_fitting_images(self, asked: Architecture) -> None:
        """DataError unless the network of the round takes this institution's images and labels."""
        shape = (asked.image_size, asked.channels)
        ours = (self._us.images[0].image_size, self._us.images[0].channels)
        if shape != ours:
            raise DataError(
                f"the federation trains on {shape[0]}x{shape[0]} images with {shape[1]} channels, yours are"
                f" {ours[0]}x{ours[0]} with {ours[1]}",
                f"Set image_size={shape[0]} and channels={shape[1]} (files in a folder are then resized)",
            )
        if asked.classes:
            for images in self._us.images:
                require_labels(images, asked.classes)

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _our_roster(self) -> Roster:
        if self._roster is None:
            raise ResultError("no roster was accepted yet")
        return self._roster

    def _count_traffic(self, current: RunState) -> None:
        if current.run is not None:
            self._state.add_traffic(current.run, current.round, self._transport.connection.meter.take())
