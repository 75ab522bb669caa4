"""What an institution sends and receives: the counters of what really went over the line, and the plan.

The plan follows arXiv 2406.12575: ``N`` counts parameters up and down over a run, without the download of the final
model. Client and plan decide by the same function (``reporters_by_session``) who reports what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from fedddpm_protocol.methods import MODEL_PARTS, Method, reporters_by_session


@dataclass(frozen=True)
class Traffic:
    """Parameters are coordinates of model vectors; payload is their bytes; bytes are whole requests and replies."""

    parameters_up: int = 0
    parameters_down: int = 0
    payload_up: int = 0
    payload_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Traffic)))

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(Traffic))


class Meter:
    """Counts traffic until somebody takes it away to make it durable."""

    def __init__(self) -> None:
        self._untaken = Traffic()

    def add(self, traffic: Traffic) -> None:
        """Count ``traffic``."""
        self._untaken += traffic

    def take(self) -> Traffic:
        """What was counted since the last call."""
        taken, self._untaken = self._untaken, Traffic()
        return taken


@dataclass(frozen=True)
class RoundPlan:
    """Parameters that one member moves in one round when nothing fails."""

    first_contact: int  # theta_0, in the first round only
    up: int
    result: int  # what the round opened: the way to the next round's base


def plan_round(
    method: Method, sizes: Mapping[str, int], spec_hash: bytes, members: Sequence[str], *, first: bool
) -> dict[str, RoundPlan]:
    """The round's plan for each member; ``sizes`` holds the coordinates of each model part."""
    session_size = {name: sum(sizes[part] for part in parts) for name, parts in method.sessions.items()}
    reporters = reporters_by_session(method, spec_hash, members)
    whole, shared = sum(sizes[part] for part in MODEL_PARTS), sum(session_size.values())
    return {
        member: RoundPlan(
            first_contact=whole if first else 0,
            up=sum(size for name, size in session_size.items() if member in reporters[name]),
            result=shared,
        )
        for member in members
    }


def paper_parameters(
    method: Method, sizes: Mapping[str, int], members: Sequence[str], spec_hashes: Sequence[bytes]
) -> int:
    """``N`` of a run with one spec a round: everything up and down but the final model."""
    total = 0
    for round_, spec_hash in enumerate(spec_hashes):
        last = round_ == len(spec_hashes) - 1
        for plan in plan_round(method, sizes, spec_hash, members, first=round_ == 0).values():
            total += plan.first_contact + plan.up + (0 if last else plan.result)
    return total
