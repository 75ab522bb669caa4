"""What secure aggregation adds to a round: ten institutions, 716,297 coordinates, everything on this machine.

    python benchmarks/round_overhead.py --institutions 10 --rounds 3

A real aggregator process and one process for each institution run whole rounds of UDEC on the paper's network; only
the training is replaced by a ready update. Measured is the wall time from "all updates are ready" to "the last
institution has derived and checked the next model". The peer in the same run is the plain way: the same updates sent
unmasked over HTTP to a process that averages them and sends the mean back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from local_federation import LocalFederation  # noqa: E402 - the examples are no package

WORKER = Path(__file__).parent / "load" / "overhead_worker.py"
PLAIN = Path(__file__).parent / "load" / "plain_average.py"


def federation(folder: Path, institutions: int, rounds: int) -> LocalFederation:
    """Enrol, make theta_0, start the run and the aggregator."""
    members = tuple(f"site-{index:02d}" for index in range(institutions))
    local = LocalFederation(folder, members, name="overhead", c_max=2, n_min=4)
    local.enrol()
    model = local.init_model(28, 1, "paper")
    local.start_run("overhead", "UDEC", model, rounds=rounds, epochs=1, join_s=120)
    local.serve()
    return local


def measure(local: LocalFederation, rounds: int) -> list[float]:
    """Seconds of every round, from "all updates ready" to "the last institution has the next model"."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = []
    for member in local.members:
        command = [sys.executable, WORKER, "--url", local.url, "--root", local.root_public]
        command += ["--folder", local.site(member), "--rounds", str(rounds)]
        workers.append(
            subprocess.Popen(
                [str(word) for word in command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    times = []
    try:
        for _ in range(rounds):
            for worker in workers:
                _expect(worker, "ready")
            start = time.perf_counter()
            for worker in workers:
                _tell(worker)
            for worker in workers:
                _expect(worker, "done")
            times.append(time.perf_counter() - start)
    finally:
        for worker in workers:
            worker.kill()
    return times


def plain(institutions: int, coordinates: int, rounds: int) -> list[float]:
    """Seconds of the plain average of the same number of float32 values over HTTP, institutions as processes."""
    command = [sys.executable, PLAIN, "--institutions", institutions, "--coordinates", coordinates, "--rounds", rounds]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return [float(value) for value in json.loads(done.stdout)]


def _expect(worker: subprocess.Popen[str], word: str) -> None:
    line = worker.stdout.readline().strip() if worker.stdout else ""
    if line != word:
        raise SystemExit(f"an institution said {line!r} instead of {word!r}")


def _tell(worker: subprocess.Popen[str]) -> None:
    if worker.stdin:
        worker.stdin.write("go\n")
        worker.stdin.flush()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--institutions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "round_overhead.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, federation(Path(name), options.institutions, options.rounds) as local:
        secure = measure(local, options.rounds)
    coordinates = 716_297
    open_sum = plain(options.institutions, coordinates, options.rounds)
    result = {
        "institutions": options.institutions,
        "coordinates": coordinates,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "secure_s": secure,
        "plain_s": open_sum,
        "secure_median_s": statistics.median(secure),
        "plain_median_s": statistics.median(open_sum),
        "ratio": statistics.median(secure) / statistics.median(open_sum),
        "megabytes_each_way": coordinates * np.dtype(np.float32).itemsize / 1e6,
    }
    table = Table(
        title=f"One round, {options.institutions} institutions, {coordinates:,} coordinates, {os.cpu_count()} cores"
    )
    for column in ("way", "median s", "min s", "max s", "ratio"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for label, times in (("secure aggregation (fedddpm)", secure), ("plain average over HTTP", open_sum)):
        median = statistics.median(times)
        ratio = f"{median / statistics.median(open_sum):.1f}"
        table.add_row(label, f"{median:.2f}", f"{min(times):.2f}", f"{max(times):.2f}", ratio)
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
