"""The institution's own update of a round: the stored one of the same base model, or its one training.

Terms are bound to the base model before the first step, and nothing of a base model is trained anew once an update of
it may lie masked at the aggregator: two updates of one base, or one that was made for another purpose than the others',
would show in sums.
"""

from __future__ import annotations

from fedddpm.model.weight_checks import require_honest_weights
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity, Work
from fedddpm.rounds.announcements import Announcements
from fedddpm.rounds.institution import Institution
from fedddpm.rounds.run_history import RunHistory
from fedddpm.rounds.trust import AcceptedSpec
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.state.secret import training_seed
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.transport.endpoints import FederationApi
from fedddpm.updates.error_feedback import ErrorFeedback
from fedddpm.updates.local_training import train_update
from fedddpm.updates.local_update import LocalUpdate, require_finite
from fedddpm.updates.update_store import UpdateStore
from fedddpm.updates.work_floor import WorkDone, WorkFloor


class RoundUpdate:
    """Makes it, and keeps it in ``store``."""

    def __init__(
        self,
        us: Institution,
        state: StateFolder,
        transport: FederationApi,
        ledger: SpentLedger,
        store: UpdateStore,
        feedback: ErrorFeedback,
        history: RunHistory,
        reporter: Reporter,
        telling: Announcements,
    ) -> None:
        self._us, self._state, self._transport, self._ledger = us, state, transport, ledger
        self._store, self._feedback, self._history = store, feedback, history
        self._reporter, self._telling = reporter, telling

    def of(self, accepted: AcceptedSpec, position: RunPosition) -> LocalUpdate | None:
        """The update for a specification at its position, durable before it is returned; None where it is lost.

        None also where too little work is behind it: time ended its training below the institution's floor.

        Raises:
            TermsError: this base model was trained on under other terms.
            PolicyError: the base model, or its first gradient, is as somebody makes it to read updates.
            TrainingError: it holds NaN or infinity. As ``RunHistory.network`` otherwise.
        """
        spec = accepted.spec
        self._ledger.agree(spec.base_model_hash, spec.terms.hash)
        stored = self._store.load(spec.base_model_hash, spec.terms.hash)
        if stored is not None:
            require_finite(stored)
            if not self._is_enough(accepted, stored):
                return None
            self._telling.trained(spec, stored, stored=True)
            return stored
        if self._ledger.has_given(spec.base_model_hash):
            self._telling.update_lost(spec)
            return None
        return self._made(accepted, position)

    def _is_enough(self, accepted: AcceptedSpec, update: LocalUpdate) -> bool:
        """Whether the work behind ``update`` is above the floors; says so where it is not."""
        floor = WorkFloor.of(self._us.config.policy, accepted.charter.training)
        if low := WorkDone(update.steps, update.images_seen).shortfall(floor):
            self._telling.too_little_work(accepted.spec, low)
        return not low

    def _made(self, accepted: AcceptedSpec, position: RunPosition) -> LocalUpdate | None:
        """A new update from the base model at ``position``: trained, with what is made up for, and stored.

        One that time ended below the floor is not stored: its checkpoint goes on where it was, if there is more time.
        """
        spec = accepted.spec
        with self._reporter.busy(Work.PROTOCOL):
            model = self._history.network(position, spec)
            require_honest_weights(model, self._us.config.policy.weight_slack)
        # What arrived counts for this round even if the process is killed in the hours that follow.
        self._state.add_traffic(spec.run, spec.round, self._transport.connection.meter.take())
        self._reporter.waiting(f"round {spec.round + 1}: training started", Activity.TRAINING)
        with self._reporter.busy(Work.TRAINING):
            update = train_update(
                model,
                spec,
                self._us.images,
                self._us.device,
                self._us.config.policy,
                training_seed(self._state),
                self._store.checkpoint,
                lambda progress: self._reporter.training(spec.round, progress),
                learning=self._us.config.learning,
                average=self._history.average(position, model),
                base=self._history.base(position, model),
                share=self._us.share,
                on_sign_of_life=self._reporter.vitals.beat,
            )
        if not self._is_enough(accepted, update):
            return None
        self._telling.trained(spec, update, stored=False)
        if self._us.config.learning.error_feedback and not self._telling.goes_without_feedback(spec):
            update = self._feedback.added_to(update, spec.parts)
        self._store.save(update)
        return update
