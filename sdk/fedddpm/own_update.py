"""The institution's own update of a round: the stored one of the same base model, or a new training."""

from __future__ import annotations

from collections.abc import Callable

from fedddpm.ema import AverageState
from fedddpm.error_feedback import ErrorFeedback
from fedddpm.institution import Institution
from fedddpm.local_update import LocalUpdate, UpdateStore, require_finite, train_update
from fedddpm.progress import Reporter
from fedddpm.run_history import RunHistory
from fedddpm.seeds import derived_seed
from fedddpm.telling import Telling
from fedddpm.unet import UNet
from fedddpm.vitals import Activity, Work
from fedddpm_protocol.roster import Roster
from fedddpm_protocol.spec import RoundSpec


class OwnUpdate:
    """Makes it and keeps it in ``store``; ``before_training`` is told when all that is needed has arrived."""

    def __init__(
        self,
        us: Institution,
        store: UpdateStore,
        feedback: ErrorFeedback,
        history: RunHistory,
        reporter: Reporter,
        telling: Telling,
        before_training: Callable[[RoundSpec], None],
    ) -> None:
        self._us, self._store, self._feedback, self._history = us, store, feedback, history
        self._reporter, self._telling, self._before_training = reporter, telling, before_training

    def of(self, spec: RoundSpec, roster: Roster) -> LocalUpdate:
        """The update for ``spec``, durable before it is returned.

        Raises:
            TrainingError: it holds NaN or infinity. As ``RunHistory.arrive`` and ``network`` otherwise.
        """
        with self._reporter.busy(Work.PROTOCOL):
            position = self._history.arrive(spec, roster)
        stored = self._store.load(spec.run, spec.round, spec.base_model_hash)
        if stored is not None:
            require_finite(stored)
            self._telling.trained(spec, stored, stored=True)
            return stored
        with self._reporter.busy(Work.PROTOCOL):
            model = self._history.network(position, spec)
        self._before_training(spec)
        self._reporter.waiting(f"round {spec.round + 1}: training started", Activity.TRAINING)
        with self._reporter.busy(Work.TRAINING):
            update = self._train(spec, model, self._history.average(position, model))
        self._telling.trained(spec, update, stored=False)
        if self._us.config.learning.error_feedback:
            update = self._feedback.added_to(update, spec.parts)
        self._store.save(update)
        return update

    def _train(self, spec: RoundSpec, model: UNet, average: AverageState | None) -> LocalUpdate:
        return train_update(
            model,
            spec,
            self._us.images,
            self._us.device,
            self._us.config.policy,
            derived_seed(self._us.config.seed, self._us.member_id),  # one default seed for all, not one noise
            self._store.checkpoint,
            lambda progress: self._reporter.training(spec.round, progress),
            learning=self._us.config.learning,
            average=average,
            share=self._us.share,
            on_sign_of_life=self._reporter.vitals.beat,
        )
