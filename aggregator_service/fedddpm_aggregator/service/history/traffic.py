"""What a run's published rounds moved, beside federated averaging of the whole network in float32.

Counted is the payload that the specifications imply, not requests and headers, and not what is sent again after a
failure of the line: masked vectors up; down what a member needs to begin the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import SessionLine, overview_of, run_called
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import coordinates
from fedddpm_protocol.agreement.model_metadata import manifests_of

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class RoundTraffic:
    """Bytes of one published round, over all members that took part."""

    round: int  # from 0
    bits: tuple[int, ...]  # rings of the published values, each named once
    up: int  # masked vectors of everybody who uploaded, in all attempts at the round
    down: int  # on the way to the round's base: the sums before it, or whole models for newcomers
    float32: int  # the whole network down and up for each member of the cohort

    @property
    def saved(self) -> float:
        """Share of the float32 traffic that was not moved."""
        return 1 - (self.up + self.down) / self.float32


@dataclass(frozen=True)
class Models:
    """Bytes of a run's models in float32."""

    whole: int  # the network
    initial: int  # theta_0; 0: it follows from a seed
    base: int  # the shared parts of a later round


def round_traffic(ctx: Context, run_name: str | None = None) -> list[RoundTraffic]:
    """Traffic of the published rounds of a run (the newest by default); OperatorError if there is no such run."""
    with ctx.database.read() as db:
        run = run_called(db, run_name)
        lines = overview_of(db, run)
    return traffic_by_round(lines, models_of(run))


def models_of(run: RunRow) -> Models:
    """How large a run's models are."""
    sizes = {part: FLOAT32_BYTES * coordinates(manifest) for part, manifest in manifests_of(run.manifest).items()}
    whole, shared = sum(sizes.values()), sum(sizes[part] for part in Method(run.method).shared_parts)
    return Models(whole, 0 if run.initial_seed else whole, shared)


def traffic_by_round(lines: Sequence[SessionLine], models: Models) -> list[RoundTraffic]:
    """As :func:`round_traffic`, from the sessions of a run in order."""
    tally = TrafficTally(models)
    rounds = (tally.add(list(group)) for _, group in groupby(lines, key=lambda line: line.round))
    return [traffic for traffic in rounds if traffic is not None]


class TrafficTally:
    """Counts a run's rounds one after the other; what is kept does not grow with their number."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._seen = frozenset[str]()  # members of the cohorts so far
        self._base_bytes = 0  # of the sums before, or of the model that follows from many shards' sums

    def add(self, lines: Sequence[SessionLine]) -> RoundTraffic | None:
        """The next round by the sessions of all its attempts; None if it was not published."""
        published = [line for line in lines if line.model is not None]
        if not published:
            return None
        index, models = published[0].round, self._models
        cohort = frozenset(member for line in published for member in line.cohort)
        newcomers = len(cohort - self._seen) * (models.initial + (models.base if index else 0))
        traffic = RoundTraffic(
            round=index,
            bits=tuple(sorted({line.bits for line in published if line.opened_bytes})),
            up=sum(len(line.survivors) * line.upload_bytes for line in lines),
            down=newcomers + len(cohort & self._seen) * self._base_bytes,
            float32=2 * len(cohort) * models.whole,
        )
        self._seen |= cohort
        self._base_bytes = min(sum(line.opened_bytes for line in published), models.base)
        return traffic
