"""What a round came to, for people and for programs (one JSON line a round)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedddpm.errors import StateError
from fedddpm.rounds.guards.own_share import OwnShare
from fedddpm.rounds.guards.sum_check import SumChecked
from fedddpm.transport.traffic import Traffic, beside_fedavg, fedavg_bytes
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.encoding.losses import federation_losses

FILE = "rounds.jsonl"


@dataclass(frozen=True)
class RoundSummary:
    """One finished round as this institution saw it."""

    run: str
    round: int  # from 0
    attempt: int
    spec_hash: str  # hex; decides who reported which part with USPLIT
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]  # whose updates are in the mean
    took_part: bool  # whether the own update is among them
    samples: int | None  # None: this institution did not train in this round
    loss_before: float | None  # own held-out loss of the round's base model
    loss_after: float | None  # the same after local training
    mean_loss_before: float | None  # mean over the survivors; None: no opened sum holds losses
    mean_loss_after: float | None
    traffic: Traffic
    seconds: float
    fedavg_bytes: int | None  # what naive FedAvg in float32 moves in a round; None: this institution did not train
    share: float | None = None  # of the own update in the mean over all parts; None: not in it, or not known
    cosine: float | None = None  # between the own update and the mean
    shares: Mapping[str, float] = field(default_factory=dict)  # by part that it contributed to
    cosines: Mapping[str, float] = field(default_factory=dict)
    checked: Mapping[str, SumChecked] = field(default_factory=dict)  # by session, what was opened again of the sum

    def __str__(self) -> str:
        own = "did not train" if self.loss_before is None else f"loss {self.loss_before:.4f} -> {self.loss_after:.4f}"
        return (
            f"round {self.round + 1}: {len(self.survivors)} of {len(self.cohort)} institutions in the mean"
            f" ({'with' if self.took_part else 'without'} this one){self._share()}{self._checked()}, {own},"
            f" federation {_loss(self.mean_loss_before)} -> {_loss(self.mean_loss_after)},"
            f" {beside_fedavg(self.traffic.bytes_up, self.traffic.bytes_down, self.fedavg_bytes)},"
            f" {self.seconds:.0f} s"
        )

    def _share(self) -> str:
        if not self.took_part:
            return ""
        if self.share is None:
            return ", own share not known"
        return f", own share {100 * self.share:.0f} % (cosine {self.cosine:.2f})"

    def _checked(self) -> str:
        return "".join(f", sum of {session} checked ({what})" for session, what in self.checked.items())


def _loss(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"


def summarize(
    result: RoundResult,
    member_id: str,
    update: LocalUpdate | None,
    traffic: Traffic,
    seconds: float,
    parameters: int | None,
    share: OwnShare | None = None,
    checked: Mapping[str, SumChecked] | None = None,
) -> RoundSummary:
    """Put a signed result and the own part in it together; ``parameters`` of the whole network, where known."""
    parts = {} if share is None else share.parts
    before, after = means_of(result)
    survivors = survivors_of(result)
    return RoundSummary(
        run=result.run,
        round=result.round,
        attempt=result.attempt,
        spec_hash=result.spec_hash.hex(),
        cohort=tuple(sorted({member for part in result.parts for member in part.cohort})),
        survivors=tuple(sorted(survivors)),
        took_part=member_id in survivors,
        samples=None if update is None else update.samples,
        loss_before=None if update is None else update.loss_before,
        loss_after=None if update is None else update.loss_after,
        mean_loss_before=before,
        mean_loss_after=after,
        traffic=traffic,
        seconds=seconds,
        fedavg_bytes=None if update is None or parameters is None else fedavg_bytes(parameters),
        share=None if share is None else share.whole.share,
        cosine=None if share is None else share.whole.cosine,
        shares={name: part.share for name, part in parts.items()},
        cosines={name: part.cosine for name, part in parts.items()},
        checked=checked or {},
    )


def survivors_of(result: RoundResult) -> set[str]:
    """The members whose updates are in an opened sum of the round."""
    return {member for part in result.parts if part.opened for member in part.survivors}


def means_of(result: RoundResult) -> tuple[float, float] | tuple[None, None]:
    """Mean held-out losses of the survivors before and after training; None where no opened sum holds them."""
    opened = (part for part in result.parts if part.opened)
    return federation_losses((part.part, part.sums, len(part.survivors)) for part in opened) or (None, None)


def append_summary(folder: Path, summary: RoundSummary) -> None:
    """Add one line to ``rounds.jsonl``; StateError if the disk does not take it."""
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(summary)) + "\n")
    except OSError as error:
        raise StateError(f"{folder / FILE} cannot be written ({error.strerror})", "Free some space") from error
