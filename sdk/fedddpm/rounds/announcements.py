"""What taking part says about itself: who is waited for, what a training and a round came to, where the model is."""

from __future__ import annotations

from dataclasses import asdict

from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity
from fedddpm.rounds.summary import RoundSummary
from fedddpm.state.folder import StateFolder
from fedddpm.updates.contribution import Pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.roster import Auditor
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.wire.api import RunState


class Announcements:
    """Words for the reporter, each once."""

    def __init__(self, reporter: Reporter, state: StateFolder) -> None:
        self._reporter, self._state = reporter, state
        self._stalled = ""  # why, as far as it was said
        self._no_feedback = ""  # the run of which it was said last
        self._run = self._over = ""  # the runs last said to begin, and to be over
        self._auditor: Auditor | None = None
        self._clipped = ("", -1)  # the run and round of which it was said last

    def takes_part(self, spec: RoundSpec) -> None:
        """A specification was accepted."""
        self._reporter.at(spec.run, spec.round, spec.attempt)
        if spec.run != self._run:
            self._run = spec.run
            self._reporter.notice(
                f"run {spec.run} ({spec.method}, {spec.rounds} rounds): taking part from round {spec.round + 1} on",
                "run-joined",
                {"method": spec.method, "rounds": spec.rounds},
            )

    def auditor(self, auditor: Auditor | None, *, kept: bool) -> None:
        """Whom the roster lets single updates be shown to, by consent; said when it is another one than before."""
        if auditor is not None and auditor != self._auditor:
            what = "what fedddpm open-update needs is kept, sealed to that key, until a round has its result"
            self._reporter.notice(
                f"the roster names {auditor.id} as auditor (key {fingerprint(auditor.sealing_key)}):"
                f" {what if kept else 'nothing is kept for it'}",
                "auditor",
                {"auditor": auditor.id, "kept": kept},
            )
        self._auditor = auditor

    def trained(self, spec: RoundSpec, update: LocalUpdate, *, stored: bool) -> None:
        """The update is there; ``stored``: from an earlier attempt or start."""
        how = "the stored update is used" if stored else f"trained in {update.seconds:.0f} s"
        self._reporter.trained(
            f"round {spec.round + 1}: {how}, {update.samples} images,"
            f" own held-out loss {update.loss_before:.4f} -> {update.loss_after:.4f}",
            update.loss_before,
            update.loss_after,
            {
                "samples": update.samples,
                "loss_before": update.loss_before,
                "loss_after": update.loss_after,
                "seconds": update.seconds,
                "stored": stored,
            },
        )

    def goes_without_feedback(self, spec: RoundSpec) -> bool:
        """Whether nothing is made up for in this run; said once a run. A part's next turn is rounds away."""
        if spec.turn and spec.run != self._no_feedback:
            self._no_feedback = spec.run
            self._reporter.warning(
                f"error_feedback is not used in run {spec.run}: its parts travel in turn, and what rounding took is not"
                " kept until the next turn"
            )
        return bool(spec.turn)

    def update_lost(self, spec: RoundSpec) -> None:
        """What was learned from the base model went under masks and is gone; it is not trained on again."""
        self._reporter.warning(
            f"round {spec.round + 1}: the update on this base model was sent before and its file is gone; sums of two"
            " different ones could give them away, so this institution sits out until the base model changes. If no"
            " round can follow without it, the coordinator must start a run from another first model"
        )

    def too_little_work(self, spec: RoundSpec, low: str) -> None:
        """The training is over and what came out of it is not sent; ``low``: what is below which floor."""
        self._reporter.warning(
            f"round {spec.round + 1}: behind the update are {low}: it is not sent, and this institution sits out."
            " If max_seconds ended the training, raise it and start again: it goes on where it was"
        )

    def clipped(self, spec: RoundSpec, pieces: Pieces) -> None:
        """The update goes into the sum; said once a round, where it is longer than the round's clip norm."""
        if pieces.factor == 1 or self._clipped == (spec.run, spec.round):
            return
        self._clipped = (spec.run, spec.round)
        self._reporter.notice(
            f"round {spec.round + 1}: the update counts {100 * pieces.factor:.3g} %: its norm {pieces.norm:.3g} is"
            f" above the round's clip norm {spec.clip_norm:.3g}",
            "clipped",
            {"norm": pieces.norm, "clip_norm": spec.clip_norm},
        )

    def attempt_failed(self, spec: RoundSpec) -> None:
        """There is a newer specification and no result."""
        self._reporter.attempt_failed(f"round {spec.round + 1}: attempt {spec.attempt + 1} ended without a result")

    def round_ended(self, summary: RoundSummary) -> None:
        """A round has a result."""
        self._reporter.round_ended(str(summary), summary.took_part, asdict(summary), summary.share, summary.cosine)

    def waits(self, current: RunState) -> None:
        """Nothing to do until others have done their part, or until the coordinator acts."""
        if current.status == "stalled":
            reason = current.reason or "no reason given"
            if reason != self._stalled:
                self._reporter.warning(f"the federation stands still: {reason}", "stalled")
            self._stalled = reason
            return self._reporter.waiting("the federation stands still", Activity.STALLED)
        phases = ", ".join(sorted({session.phase.value for session in current.sessions.values()}))
        done = max((session.posted for session in current.sessions.values()), default=0)
        among = max((session.cohort_size for session in current.sessions.values()), default=0)
        where = f"round {current.round + 1} of {current.rounds}, attempt {current.attempt + 1}"
        return self._reporter.waiting(
            f"{where}: waiting for the others ({phases}, {done}{f' of {among}' if among else ''} done)",
            key=f"{where} {phases}",
        )

    def run_over(self, run: str) -> None:
        """A run has ended, for whatever reason; said once."""
        if run == self._over:
            return
        self._over = run
        position = self._state.position(run)
        if position is None:
            return self._reporter.notice(f"run {run} is finished; this institution took no part in it", "run-over")
        model = self._state.path / position.model_file
        return self._reporter.notice(
            f"run {run} is finished; the model after round {position.next_round} is {model}, pictures of it:"
            f" fedddpm sample --state-dir {self._state.path} --out samples.png",
            "run-over",
            {"rounds": position.next_round, "model": str(model)},
        )
