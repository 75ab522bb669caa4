"""Who is measured on what: the schemes, the jobs that they get, and the process that does one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.aggregation.cost import Job

ROOT = Path(__file__).resolve().parents[2]
FLOWER_NEIGHBOURS = 10
BARE = "bare_worker"
LARGEST_ERROR = 0.1  # squared, of the opened mean: above it a scheme is not measured but broken
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}
_MANY = 100  # institutions: a session of so many is set up once, not for every repetition
_CHECKED = 10_000  # coordinates of the sum that a peer's model is checked with


@dataclass(frozen=True)
class Case:
    """One size of the problem."""

    coordinates: int
    cohort: int


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    coordinates: list[int]
    cohorts: list[int]
    drops: list[int]
    bits: list[int]
    repetitions: int
    chunk: int
    flower: Path | None
    nvflare: Path | None
    nvflare_most: int  # coordinates
    equal_masks_most: int  # institutions

    @property
    def cases(self) -> list[Case]:
        """Small ones first."""
        return [Case(coordinates, cohort) for coordinates in self.coordinates for cohort in self.cohorts]

    def repetitions_of(self, case: Case) -> int:
        """How often a case is measured."""
        return 1 if case.cohort >= _MANY else self.repetitions


@dataclass(frozen=True)
class Scheme:
    """One way to sum."""

    name: str
    worker: str
    python: Path
    neighbours: int  # with whom a client shares masks; 0: there are none
    bits: int = 32

    def masks(self, role: str, case: Case, drops: int) -> int:
        """Streams of mask that a client makes, or the server to open a sum."""
        if role == "client":
            return 1 + self.neighbours
        survivors = case.cohort - drops
        return survivors + drops * min(self.neighbours, survivors)


@dataclass
class Measured:
    """All repetitions of one role of a scheme in a case, and those of the bare loop beside them."""

    scheme: Scheme
    role: str
    case: Case
    drops: int
    costs: list[dict[str, Any]] = field(default_factory=list)
    limits_s: list[float] = field(default_factory=list)


def schemes(plan: Plan, case: Case) -> list[Scheme]:
    """Everybody who is measured in a case."""
    own, others = Path(sys.executable), case.cohort - 1
    found = [Scheme(f"fedddpm, {bits} bits", "own_worker", own, others, bits) for bits in plan.bits]
    if plan.flower:
        circles = {min(FLOWER_NEIGHBOURS, others)} | ({others} if case.cohort <= plan.equal_masks_most else set())
        found += [
            Scheme(f"Flower SecAgg+, {circle} neighbours", "flower_worker", plan.flower, circle)
            for circle in sorted(circles)
        ]
    if plan.nvflare and case.coordinates <= plan.nvflare_most:
        found.append(Scheme("NVFlare CKKS", "nvflare_worker", plan.nvflare, 0))
    return found


def measure(plan: Plan, case: Case) -> list[Measured]:
    """Let the schemes take turns, each beside the bare loop with its masks and bytes."""
    taking_part = schemes(plan, case)
    for scheme in taking_part:
        _check(scheme, case, max(plan.drops))
    measured = [Measured(scheme, "client", case, 0) for scheme in taking_part]
    measured += [Measured(scheme, "server", case, drops) for drops in plan.drops for scheme in taking_part]
    for _ in range(plan.repetitions_of(case)):
        for one in measured:
            cost = _run(one.scheme, _job(one, plan.chunk))
            if (cost.get("error") or 0.0) > LARGEST_ERROR:
                raise SystemExit(f"{one.scheme.name} opened a wrong mean: a squared error of {cost['error']:.3g}")
            one.costs.append(cost)
            if one.scheme.neighbours:
                one.limits_s.append(_limit_s(one))
    return measured


def _job(one: Measured, chunk: int) -> Job:
    return Job(
        one.role,
        one.case.coordinates,
        one.case.cohort,
        drops=one.drops,
        bits=one.scheme.bits,
        chunk=chunk,
        neighbours=one.scheme.neighbours,
    )


def _limit_s(one: Measured) -> float:
    """CPU seconds of the bare loop."""
    vectors = one.case.cohort - one.drops if one.role == "server" else 0
    masks = one.scheme.masks(one.role, one.case, one.drops)
    bare = Scheme("bare loop", BARE, Path(sys.executable), 0)
    job = Job(one.role, one.case.coordinates, one.case.cohort, bits=one.scheme.bits, masks=masks, vectors=vectors)
    return total_s(_run(bare, job))


def total_s(cost: dict[str, Any]) -> float:
    """CPU seconds of all steps."""
    return float(sum(cost["cpu_s"].values()))


def _check(scheme: Scheme, case: Case, drops: int) -> None:
    """That Flower opens the right mean when it is driven like this; ours is checked whenever it is measured."""
    if scheme.worker != "flower_worker":
        return
    job = Job("server", _CHECKED, case.cohort, drops=drops, neighbours=scheme.neighbours, real_uploads=True)
    error = _run(scheme, job)["error"]
    if error > LARGEST_ERROR:
        raise SystemExit(f"{scheme.name} opened a wrong mean: a squared error of {error:.3g}")


def _run(scheme: Scheme, job: Job) -> dict[str, Any]:
    """The answer of a fresh process on one thread."""
    command = [str(scheme.python), "-m", f"benchmarks.aggregation.{scheme.worker}", job.text]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{scheme.name} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
