"""Taking part in rounds: wait for one, get its base model, train, contribute, take the result.

The loop holds no secret and nothing that cannot be lost: after a kill at any moment the same call goes on from the
state folder. What the aggregator says is checked by ``trust``; what is computed is done by ``local_update`` and
``session_driver``; here is only the order of things.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedddpm.attempt import Attempt, require_enough_reporters
from fedddpm.config import ClientConfig
from fedddpm.error_feedback import ErrorFeedback
from fedddpm.errors import DataError, PolicyError
from fedddpm.identity import Identity
from fedddpm.image_set import ImageSet, require_labels
from fedddpm.ledger import SpentLedger
from fedddpm.local_update import LocalUpdate, UpdateStore, require_finite, train_update
from fedddpm.model_store import ModelStore
from fedddpm.progress import Reporter
from fedddpm.ranks import ALONE, Share
from fedddpm.restore import RestoreGuard
from fedddpm.run_history import RunHistory
from fedddpm.seeds import derived_seed
from fedddpm.session_driver import Seat, send_owed
from fedddpm.state import StateDir
from fedddpm.state_report import parameters_in
from fedddpm.summary import RoundSummary, append_summary, summarize
from fedddpm.transport import Transport
from fedddpm.trust import accept_roster, accept_spec, require_enrolled
from fedddpm_protocol import canonical
from fedddpm_protocol.api import RunState
from fedddpm_protocol.errors import ResultError, SpecError
from fedddpm_protocol.messages import SignedDocument
from fedddpm_protocol.policy import LocalPolicy
from fedddpm_protocol.roster import Roster
from fedddpm_protocol.spec import RoundResult, RoundSpec


@dataclass(frozen=True)
class Institution:
    """What this institution brings: who it is, what it trains on, where, and by which settings."""

    config: ClientConfig
    identity: Identity
    member_id: str
    root_public_key: bytes
    images: tuple[ImageSet, ImageSet]  # for training, held out
    device: torch.device
    share: Share = ALONE  # of the training, where several processes train together


class Participation:
    """The loop over rounds of one open state folder and one connection."""

    def __init__(
        self,
        institution: Institution,
        state: StateDir,
        transport: Transport,
        reporter: Reporter,
        on_round: Callable[[RoundSummary], None],
    ) -> None:
        self._us, self._state, self._transport, self._reporter = institution, state, transport, reporter
        self._on_round = on_round
        self._ledger = SpentLedger(state)
        self._updates = UpdateStore(state.path)
        self._feedback = ErrorFeedback(state.path, institution.member_id)
        models = ModelStore(state, transport, reporter.transfer)
        averaging = bool(institution.config.learning.ema_decay)
        self._history = RunHistory(state, models, transport, reporter, averaging=averaging)
        self._guard = RestoreGuard(state, institution.config.after_restore)
        self._roster: Roster | None = None
        self._attempt: Attempt | None = None
        self._sat_out: SignedDocument | None = None  # a specification that is not for us
        self._stalled = ""  # why, as far as it was said
        self._version = 0
        self._round_began = time.monotonic()

    def run(self, rounds: int | None) -> list[RoundSummary]:
        """Take part until ``rounds`` rounds ended, or the run did; one summary for each."""
        summaries: list[RoundSummary] = []
        while rounds is None or len(summaries) < rounds:
            current = self._poll()
            self._send_owed()
            taken = self._take_results(current)
            summaries += taken
            if current.run is not None and current.status == "finished":
                self._say_where_the_model_is(current.run)
                break
            if rounds is not None and len(summaries) >= rounds:
                break
            if taken and taken[-1].round >= current.results:
                continue  # rounds went on while these results were taken: what was polled is of the past
            self._contribute(current)
            self._count_traffic(current)
        return summaries

    # --- what the aggregator says -------------------------------------------------------------------------------------

    def _poll(self) -> RunState:
        wait_s = self._us.config.network.poll_s if self._version else 0
        current = self._transport.state(self._version, wait_s)
        self._version = current.version
        if self._roster is None or current.roster_version > self._roster.version:
            self._refresh_roster()
        elif current.roster_version < self._roster.version:
            raise PolicyError(
                f"the aggregator went back to roster version {current.roster_version} from {self._roster.version}",
                "Stop, and call the federation's coordinator before you go on",
            )
        return current

    def _refresh_roster(self) -> None:
        document = self._transport.roster()
        self._roster = accept_roster(document, self._us.root_public_key, self._state)
        require_enrolled(self._roster, self._us.identity, self._us.member_id)
        self._state.bind_member()
        if self._attempt is not None:
            self._attempt.check_newer_roster(self._roster)

    def _send_owed(self) -> None:
        for owed in self._ledger.owed():
            send_owed(self._transport.session(owed.spec_hash, owed.session), self._ledger, owed)

    # --- results ------------------------------------------------------------------------------------------------------

    def _take_results(self, current: RunState) -> list[RoundSummary]:
        """Move to the newest base model if rounds ended since the last look."""
        position = None if current.run is None else self._state.position(current.run)
        if position is None or current.results <= position.next_round:
            return []
        update = self._updates.load(position.run, position.next_round, position.base_model_hash)
        known = {} if self._attempt is None else {self._attempt.spec.hash: self._attempt.spec}
        results = self._history.advance(position, self._our_roster(), known, update, current.rounds)
        if self._us.config.learning.error_feedback and results:
            self._feedback.after_results(position.run, position.next_round, results, known, update)
        summaries = [self._summarize(result, update) for result in results]
        if self._attempt is not None:
            self._attempt.leave("the round is over")
            self._attempt = None
        self._updates.clear()
        return summaries

    def _summarize(self, result: RoundResult, update: LocalUpdate | None) -> RoundSummary:
        self._state.add_traffic(result.run, result.round, self._transport.connection.meter.take())
        position = self._state.position(result.run)
        summary = summarize(
            result,
            self._us.member_id,
            update if update is not None and update.round == result.round else None,
            self._state.traffic(result.run, result.round),
            time.monotonic() - self._round_began,
            None if position is None else parameters_in(self._state.path / position.model_file),
        )
        append_summary(self._state.path, summary)
        self._on_round(summary)
        self._round_began = time.monotonic()
        return summary

    # --- contributing -------------------------------------------------------------------------------------------------

    def _contribute(self, current: RunState) -> None:
        """Go one step on in the attempt that the aggregator offers, or wait."""
        if current.spec is None or current.status == "waiting":
            return self._reporter.waiting("waiting for the coordinator to start a run")
        if self._attempt is not None and self._attempt.document != current.spec:
            self._attempt.leave("a newer specification is there")
            self._attempt = None
        if self._attempt is None and current.spec != self._sat_out:
            self._attempt = self._begin(current.spec)
        if self._attempt is None:
            return self._reporter.waiting("sitting out this attempt, waiting for the next")
        self._attempt.advance(current.sessions)
        self._say_what_we_wait_for(current)
        return None

    def _begin(self, document: SignedDocument) -> Attempt | None:
        """Check the specification, get the base model, train or take the stored update; None to sit it out."""
        self._sat_out = None
        roster = self._our_roster()
        spec, policy = self._accept(document, roster)
        if spec is None or not self._guard.admits(spec, self._reporter.notice):
            self._sat_out = document
            return None
        require_enough_reporters(spec, roster, self._us.member_id, policy.floor(roster))
        update = self._update_for(spec, roster)
        seat = Seat(
            self._us.identity,
            self._us.member_id,
            roster,
            policy,
            self._state,
            self._ledger,
            self._reporter.transfer,
        )
        return Attempt(document, spec, seat, self._transport, update, self._reporter.notice)

    def _accept(self, document: SignedDocument, roster: Roster) -> tuple[RoundSpec | None, LocalPolicy]:
        try:
            spec, policy = accept_spec(document, roster, self._us.config.policy)
        except SpecError:
            version = spec_roster_version(document)
            if version >= roster.version:
                raise
            self._reporter.notice(f"this attempt was made for the older roster {version}; waiting for the next")
            return None, LocalPolicy(architecture_hash=b"")
        shape = (spec.architecture.image_size, spec.architecture.channels)
        ours = (self._us.images[0].image_size, self._us.images[0].channels)
        if shape != ours:
            raise DataError(
                f"the federation trains on {shape[0]}x{shape[0]} images with {shape[1]} channels, yours are"
                f" {ours[0]}x{ours[0]} with {ours[1]}",
                f"Set image_size={shape[0]} and channels={shape[1]} (files in a folder are then resized)",
            )
        if spec.architecture.classes:
            for images in self._us.images:
                require_labels(images, spec.architecture.classes)
        return spec, policy

    def _update_for(self, spec: RoundSpec, roster: Roster) -> LocalUpdate:
        """The stored update of this base model, or a new one."""
        position = self._history.arrive(spec, roster)
        stored = self._updates.load(spec.run, spec.round, spec.base_model_hash)
        if stored is not None:
            require_finite(stored)
            return stored
        model = self._history.network(position, spec)
        self._count(spec)
        self._reporter.waiting(f"round {spec.round + 1}: training started")
        update = train_update(
            model,
            spec,
            self._us.images,
            self._us.device,
            self._us.config.policy,
            derived_seed(self._us.config.seed, self._us.member_id),  # one default seed for all, not one noise
            self._updates.checkpoint,
            lambda progress: self._reporter.training(spec.round, progress),
            learning=self._us.config.learning,
            average=self._history.average(position, model),
            share=self._us.share,
        )
        if self._us.config.learning.error_feedback:
            update = self._feedback.added_to(update, spec.parts)
        self._updates.save(update)
        return update

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _our_roster(self) -> Roster:
        if self._roster is None:
            raise ResultError("no roster was accepted yet")
        return self._roster

    def _say_where_the_model_is(self, run: str) -> None:
        position = self._state.position(run)
        if position is None:
            return self._reporter.notice(f"run {run} is finished; this institution took no part in it")
        model = self._state.path / position.model_file
        return self._reporter.notice(
            f"run {run} is finished; the model after round {position.next_round} is {model}, pictures of it:"
            f" fedddpm sample --state-dir {self._state.path} --out samples.png"
        )

    def _say_what_we_wait_for(self, current: RunState) -> None:
        if current.status == "stalled":
            reason = current.reason or "no reason given"
            if reason != self._stalled:
                self._reporter.warning(f"the federation stands still: {reason}")
            self._stalled = reason
            return self._reporter.waiting("the federation stands still")
        phases = ", ".join(sorted({session.phase.value for session in current.sessions.values()}))
        joined = max((session.posted for session in current.sessions.values()), default=0)
        return self._reporter.waiting(
            f"round {current.round + 1} of {current.rounds}, attempt {current.attempt + 1}: waiting for the others"
            f" ({phases}, {joined} done)"
        )

    def _count(self, spec: RoundSpec) -> None:
        self._state.add_traffic(spec.run, spec.round, self._transport.connection.meter.take())

    def _count_traffic(self, current: RunState) -> None:
        if current.run is not None:
            self._state.add_traffic(current.run, current.round, self._transport.connection.meter.take())


def spec_roster_version(document: SignedDocument) -> int:
    """The roster version that a verified specification was made for."""
    return canonical.decode(RoundSpec, document.body).roster_version
