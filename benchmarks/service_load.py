"""What one aggregator costs as institutions become many: N of them, simulated, on this machine and its cores.

    python benchmarks/service_load.py                                # N = 10, 100, 128; 4,096 and 716,297 coordinates
    python benchmarks/service_load.py --institutions 100 --coordinates 716297 --idle 0
    python benchmarks/service_load.py --database postgresql          # starts a PostgreSQL of its own
    python benchmarks/service_load.py --database-url postgresql://...    # an empty database that is there
    python benchmarks/service_load.py --replicas 3 --database postgresql --blobs s3://bucket/prefix
    python benchmarks/service_load.py --shards 8 --institutions 1000 --coordinates 4096
    python benchmarks/service_load.py --documents docs/results       # what stands there, a quarter of an hour

A real aggregator process serves; institutions are threads of two client processes that speak the real protocol over
real HTTP (16-bit values, hidden weights, everybody in one cohort or in shards). Measured are whole rounds, from the
last JOIN to the published result, each endpoint as its client sees it (waiting for the machine included, since clients
share its cores), CPU seconds, memory and the database. Then 500 clients wait in long polls for a round that does not
begin. The peer in the same run sends the same number of float32 vectors in the clear to a process that averages them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.load.clients import Orders  # noqa: E402
from benchmarks.load.peer import plain_average  # noqa: E402
from benchmarks.load.postgresql import postgresql_server  # noqa: E402 - after the path
from benchmarks.load.report import print_report, write_markdown  # noqa: E402
from benchmarks.load.server import BITS, Served, Setup, served  # noqa: E402

CLIENTS = Path(__file__).parent / "load" / "clients.py"
PAPER = 716_297  # shared coordinates of the paper's network
SMALL = 4_096
CLIENT_PROCESSES = 2
_WARM_UP_S = 5.0
DOCUMENTED: tuple[tuple[str, Sequence[str]], ...] = (
    ("SQLite", ()),
    ("PostgreSQL", ("--database", "postgresql", "--institutions", "100")),
    (
        "A thousand institutions in eight shards",
        ("--institutions", "1000", "--shards", "8", "--coordinates", str(SMALL), "--idle", "0", "--no-peer"),
    ),
)


class Clients:
    """Client processes that are ready to begin."""

    def __init__(self, site: Served, mode: str, names: Sequence[str], rounds: int, poll_s: float, connections: int = 1):
        addresses = [process.address for process in site.processes]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        self.processes = []
        for number in range(max(CLIENT_PROCESSES, len(addresses))):
            mine = list(names[number :: max(CLIENT_PROCESSES, len(addresses))])
            orders = Orders(
                mode, addresses[number % len(addresses)], mine, site.root_public, rounds, poll_s, connections
            )
            command = [sys.executable, str(CLIENTS), orders.text]
            self.processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for process in self.processes:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise SystemExit("a client process did not begin; its words are above")

    def go(self) -> None:
        """Let them begin."""
        for process in self.processes:
            if process.stdin:
                process.stdin.write("go\n")
                process.stdin.flush()

    def reports(self) -> list[dict[str, Any]]:
        """What each saw, once it ended; SystemExit if an institution failed."""
        reports = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]
        errors = [error for report in reports for error in report["errors"]]
        if errors:
            raise SystemExit(f"{len(errors)} institutions failed; the first: {errors[0]}")
        return reports

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def measure_rounds(setup: Setup, poll_s: float) -> dict[str, Any]:
    """Whole rounds of everybody."""
    with tempfile.TemporaryDirectory() as name, served(setup, Path(name)) as site:
        idle_mib, database_mib = max(p.memory_mib("VmRSS") for p in site.processes), site.database_mib()
        clients = Clients(site, "round", setup.names, setup.rounds, poll_s)
        try:
            cpu = site.cpu_s()
            clients.go()
            reports = clients.reports()
            cpu = site.cpu_s() - cpu
        finally:
            clients.close()
        return {
            "institutions": setup.institutions,
            "coordinates": setup.coordinates,
            "bits": BITS,
            "shards": setup.shards,
            "replicas": setup.replicas,
            "round_s": _round_seconds(reports, setup.rounds),
            "server_cpu_s": cpu / setup.rounds,
            "client_cpu_s": sum(report["cpu_s"] for report in reports) / setup.rounds,
            "client_mib": sum(report["rss"] for report in reports) / 2**20,
            "server_idle_mib": idle_mib,
            "server_peak_mib": max(process.memory_mib("VmHWM") for process in site.processes),
            "database_mib": site.database_mib(),
            "database_before_mib": database_mib,
            "bytes_up": sum(report["up"] for report in reports) // setup.rounds,
            "bytes_down": sum(report["down"] for report in reports) // setup.rounds,
            "endpoints": _endpoints(reports),
        }


def _round_seconds(reports: Sequence[dict[str, Any]], rounds: int) -> list[float]:
    """From the answer to the last JOIN to the first sight of the result, for each round."""
    seconds = []
    for number in map(str, range(rounds)):
        last = max(moment for report in reports for moment in report["joined"][number])
        seconds.append(min(moment for report in reports for moment in report["ended"][number]) - last)
    return seconds


def _endpoints(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Requests and the 50th and 95th percentile of milliseconds."""
    together: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for endpoint, values in report["latencies"].items():
            together[endpoint] += values
    percentiles = {}
    for endpoint, values in sorted(together.items()):
        cuts = statistics.quantiles(values, n=20) if len(values) > 1 else values * 19
        percentiles[endpoint] = {"requests": len(values), "p50_ms": statistics.median(values), "p95_ms": cuts[18]}
    return percentiles


def measure_idle(setup: Setup, pollers: int, seconds: float, poll_s: float) -> dict[str, Any]:
    """The share of one core that waiting clients cost, beside that of a server whom nobody asks."""
    with tempfile.TemporaryDirectory() as name, served(setup, Path(name)) as site:
        time.sleep(_WARM_UP_S)
        alone = _share(site, seconds / 2)
        before = site.processes[0].memory_mib("VmRSS")
        clients = Clients(site, "idle", setup.names, 1, poll_s, pollers // setup.institutions)
        try:
            clients.go()
            time.sleep(_WARM_UP_S + poll_s)
            waiting = _share(site, seconds)
            grown = site.processes[0].memory_mib("VmRSS") - before
        finally:
            clients.close()
    return {
        "pollers": pollers // setup.institutions * setup.institutions,
        "poll_s": poll_s,
        "seconds": seconds,
        "core_share_alone": alone,
        "core_share": waiting,
        "kib_per_poller": grown * 1024 / pollers,
    }


def _share(site: Served, seconds: float) -> float:
    cpu, started = site.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (site.cpu_s() - cpu) / (time.monotonic() - started)


@contextlib.contextmanager
def databases(options: argparse.Namespace) -> Iterator[Any]:
    """A function that gives each measurement an empty database: its URL, or None for SQLite."""
    if options.database_url:
        urls = iter([options.database_url])
        yield lambda: next(urls)
    elif options.database == "postgresql":
        with postgresql_server() as server:
            yield server.new_database
    else:
        yield lambda: None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for."""
    rows, peers, idle = [], [], None
    with databases(options) as new_database:
        for coordinates in options.coordinates:
            for institutions in options.institutions:
                setup = Setup(
                    institutions,
                    coordinates,
                    options.rounds,
                    options.shards,
                    options.replicas,
                    new_database(),
                    options.blobs,
                )
                print(f"{institutions} institutions, {coordinates:,} coordinates ...", file=sys.stderr, flush=True)
                rows.append(measure_rounds(setup, options.poll))
                if options.peer:
                    peers.append(plain_average(institutions, coordinates, options.rounds))
                    rows[-1]["times_plain"] = statistics.median(rows[-1]["round_s"]) / statistics.median(peers[-1]["s"])
        if options.idle:
            print(f"{options.idle} clients that wait ...", file=sys.stderr, flush=True)
            setup = Setup(min(100, options.idle), SMALL, database_url=new_database(), blobs=options.blobs)
            idle = measure_idle(setup, options.idle, options.idle_seconds, options.poll)
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "database": "postgresql" if options.database_url else options.database,
        "blobs": "object store" if options.blobs else "directory",
        "client_processes": CLIENT_PROCESSES,
        "rows": rows,
        "peers": peers,
        "idle": idle,
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--institutions", type=int, nargs="+", default=[10, 100, 128])
    parser.add_argument("--coordinates", type=int, nargs="+", default=[SMALL, PAPER])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--shards", type=int, default=0, help="spread everybody over so many shards")
    parser.add_argument("--replicas", type=int, default=1, help="aggregator processes (more than one: PostgreSQL)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--database-url", help="an empty PostgreSQL database, for a single measurement")
    parser.add_argument("--blobs", help="s3://bucket/prefix (AWS_* variables say where and who)")
    parser.add_argument("--idle", type=int, default=500, help="clients in long polls; 0: leave this out")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--poll", type=float, default=240.0, help="seconds of a long poll")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="the plain average too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "service_load.json")
    parser.add_argument("--documents", type=Path, help="make service_load.md and .json here, and nothing else")
    titles = [title for title, _ in DOCUMENTED]
    parser.add_argument("--section", nargs="+", choices=titles, help="with --documents: measure these, keep the others")
    return parser.parse_args(arguments)


def document(
    folder: Path, runs: Sequence[tuple[str, Sequence[str]]] = DOCUMENTED, sections: Sequence[str] | None = None
) -> None:
    """Measure what the documents show, or some sections of it, and write it there."""
    file = folder / "service_load.json"
    known = json.loads(file.read_text()) if sections is not None and file.exists() else {}
    results = {}
    for title, arguments in runs:
        if sections is None or title in sections:
            results[title] = measure(options_of(arguments))
            print_report(results[title])
        elif title in known:
            results[title] = known[title]
    file.write_text(json.dumps(results, indent=2) + "\n")
    write_markdown(results, folder / "service_load.md")


def main() -> None:
    """Measure, print, write."""
    options = options_of()
    if options.documents:
        document(options.documents, sections=options.section)
        return
    result = measure(options)
    print_report(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
