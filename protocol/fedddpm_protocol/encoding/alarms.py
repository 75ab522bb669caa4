"""Alarms over a run's signed results: signs that a round did harm, or that somebody's update was very large.

Nothing but the opened sums and norms of signed results goes in, so whoever has these rings the same alarms, and nobody
needs to be told by the aggregator. An alarm proves nothing and names nobody: it says that people should look.

* ``loss``: three rounds running, the mean held-out loss after the round was worse than before it. What it is after a
  round is what institutions measure when the next one begins, so it is known with that round's result. A loss that
  has settled moves up and down a little for ever: all the rounds that ran together must raise it by a twentieth.
* ``norm``: the mean update of a part is more than 1.5 times the median of the part's means in the last rounds, also
  when it is multiplied by the root of how many institutions are in it: the mean of fewer updates is longer by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, takewhile
from statistics import median
from typing import Self

from fedddpm_protocol.agreement.methods import sessions_by_part
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.encoding.losses import federation_losses

LOSS, NORM = "loss", "norm"
ALARMS = (LOSS, NORM)
WORSE_ROUNDS = 3  # running, before the loss alarm rings
LEAST_RISE = 1.05  # of the loss, from the first of the rounds that ran to the last
LARGE = 1.5  # times the median
FEWEST_MEANS = 3  # earlier ones of a part, before its norm alarm can ring: of two the median is no better than a guess
REMEMBERED = 9  # rounds that are looked back at: clip norms and updates become smaller while a run goes on


@dataclass(frozen=True)
class Mean:
    """How long the mean update of a part is; of a part with shards, that of the shard where it is longest."""

    norm: float
    survivors: int


@dataclass(frozen=True)
class RoundFigures:
    """What alarms need of one result."""

    round: int  # from 0
    loss: float | None  # mean held-out loss of the round's base model; None: no opened sum holds losses
    means: Mapping[str, Mean]  # by opened part

    @classmethod
    def of(cls, result: RoundResult) -> Self:
        """From a signed result."""
        opened = {part.part: part for part in result.parts if part.opened}
        losses = federation_losses((part.part, part.sums, len(part.survivors)) for part in opened.values())
        longest = {
            name: max((opened[session] for session in sessions), key=lambda part: part.norm)
            for name, sessions in sessions_by_part(opened).items()
        }
        means = {name: Mean(part.norm, len(part.survivors)) for name, part in longest.items()}
        return cls(result.round, None if losses is None else losses[0], means)


@dataclass(frozen=True)
class Alarm:
    """Something about a round that people should look at."""

    kind: str  # LOSS or NORM
    round: int  # from 0: the one with whose result it is known
    text: str

    def __str__(self) -> str:
        return self.text


def alarms_at(earlier: Sequence[RoundFigures], newest: RoundFigures) -> tuple[Alarm, ...]:
    """What rings with the result of ``newest``, after those of ``earlier`` in order (the last REMEMBERED count)."""
    recent = earlier[-REMEMBERED:]
    found = [_loss_alarm([*recent, newest])]
    found += [
        _norm_alarm(newest.round, name, mean, [one.means[name] for one in recent if name in one.means])
        for name, mean in newest.means.items()
    ]
    return tuple(alarm for alarm in found if alarm is not None)


def _loss_alarm(rounds: Sequence[RoundFigures]) -> Alarm | None:
    if rounds[-1].loss is None:
        return None
    known = [(one.round, one.loss) for one in rounds if one.loss is not None]
    worse = list(takewhile(lambda pair: pair[0][1] < pair[1][1], reversed(list(pairwise(known)))))[::-1]
    if len(worse) < WORSE_ROUNDS or known[-1][1] <= LEAST_RISE * worse[0][0][1]:
        return None
    way = " -> ".join(f"{loss:.4f}" for _, loss in known[-len(worse) - 1 :])
    text = (
        f"the mean held-out loss became worse {len(worse)} rounds running: {way}, from before round"
        f" {worse[0][0][0] + 1} to before round {known[-1][0] + 1}"
    )
    return Alarm(LOSS, rounds[-1].round, text)


def _norm_alarm(round_: int, part: str, mean: Mean, before: Sequence[Mean]) -> Alarm | None:
    if len(before) < FEWEST_MEANS:
        return None
    usual = median(one.norm for one in before)
    # Of updates that have nothing in common this stays the same when there are more or fewer of them.
    usual_of_one = median(one.norm * math.sqrt(one.survivors) for one in before)
    if mean.norm <= LARGE * usual or mean.norm * math.sqrt(mean.survivors) <= LARGE * usual_of_one:
        return None
    times = f"{mean.norm / usual:.1f} times the median {usual:.3g}" if usual else "and all before were nothing"
    norm = f"the mean update of round {round_ + 1} in part {part} has norm {mean.norm:.3g}"
    return Alarm(NORM, round_, f"{norm}, {times} of the rounds before")


class AlarmWatch:
    """Follows the results of one run one by one; what is kept does not grow with their number."""

    def __init__(self, figures: Sequence[RoundFigures] = ()) -> None:
        self._figures = list(figures)
        self.newest: tuple[Alarm, ...] = ()  # of the result that was followed last

    def follow(self, result: RoundResult) -> tuple[Alarm, ...]:
        """What rings with the next result. One of a round that was followed before takes the place of that."""
        earlier = [one for one in self._figures if one.round < result.round]
        figures = RoundFigures.of(result)
        self.newest = alarms_at(earlier, figures)
        self._figures = [*earlier[-REMEMBERED:], figures]
        return self.newest

    def to_json(self) -> str:
        """All of it, for a file."""
        figures, newest = map(asdict, self._figures), map(asdict, self.newest)
        return json.dumps({"figures": list(figures), "newest": list(newest)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`."""
        stored = json.loads(text)
        watch = cls(
            [
                RoundFigures(one["round"], one["loss"], {name: Mean(**mean) for name, mean in one["means"].items()})
                for one in stored["figures"]
            ]
        )
        watch.newest = tuple(Alarm(**alarm) for alarm in stored["newest"])
        return watch


def alarms_of(results: Sequence[RoundResult]) -> list[Alarm]:
    """Everything that rings over a run's results in order."""
    watch = AlarmWatch()
    return [alarm for result in results for alarm in watch.follow(result)]
