"""Rings alarms over the results that this institution takes, and stops before a training where its policy says so.

Everything is computed at home from signed results; what the aggregator says of alarms counts for nothing. What later
alarms need lies in the state folder before a result is left behind, so that a restart forgets none of it, and who
joins in the middle of a run follows its whole chain first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.state.folder import StateFolder
from fedddpm.state.report import ALARMS
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.alarms import Alarm, AlarmWatch


class AlarmGuard:
    """The alarms of the run that this institution is in, and what its policy says to them."""

    def __init__(self, state: StateFolder, policy: LocalPolicyOptions, reporter: Reporter) -> None:
        self._state, self._policy, self._reporter = state, policy, reporter
        self._untold: dict[tuple[str, int], tuple[Alarm, ...]] = {}  # by run and round

    def follow(self, results: Sequence[RoundResult]) -> None:
        """Results of one run in order, verified; those of rounds that were followed before take their place."""
        run = results[0].run
        watch = self._watch(run)
        for result in results:
            alarms = watch.follow(result)
            if alarms:
                self._untold[run, result.round] = alarms
        self._state.remember(ALARMS, json.dumps({"run": run, "watch": watch.to_json()}).encode())

    def tell(self, run: str, round_: int) -> None:
        """Warn of what rang with the result of a round that is taken, once."""
        alarms = self._untold.pop((run, round_), ())
        for alarm in alarms:
            self._reporter.warning(
                f"alarm after round {round_ + 1}: {alarm}. It proves nothing and names nobody: ask the federation's"
                " coordinator, and look whether anything has changed here",
                "alarm",
            )
        self._reporter.vitals.alarmed(frozenset(alarm.kind for alarm in alarms))

    def require_quiet(self, spec: RoundSpec) -> None:
        """PolicyError where the result before ``spec``'s round rang an alarm and the policy stops then."""
        if spec.round and (spec.run, spec.round - 1) in self._untold:
            self.tell(spec.run, spec.round - 1)  # of who joins now, and was not there when it was published
        alarms = self._watch(spec.run).newest
        if alarms and self._policy.stop_on_alarm:
            raise PolicyError(
                f"an alarm rang after round {alarms[0].round + 1} of run {spec.run}, and the policy stops then"
                f" (stop_on_alarm): {'; '.join(map(str, alarms))}. Nothing more was trained or sent",
                "Call the federation's coordinator; to go on, set stop_on_alarm = false and start again",
            )

    def _watch(self, run: str) -> AlarmWatch:
        stored = self._state.fact(ALARMS)
        known = {} if stored is None else json.loads(stored)
        return AlarmWatch.from_json(known["watch"]) if known.get("run") == run else AlarmWatch()


def ringing(stored: bytes) -> list[str]:
    """The alarms that rang with the newest result, from the fact that a guard keeps; for people."""
    known = json.loads(stored)
    newest = AlarmWatch.from_json(known["watch"]).newest
    return [f"after round {alarm.round + 1} of run {known['run']}: {alarm}" for alarm in newest]
