"""What a secure sum costs: this package beside Flower's SecAgg+, NVFlare's encryption and a bare cipher loop, in one run.

    python benchmarks/secure_aggregation.py
    python benchmarks/secure_aggregation.py --coordinates 100000000 --cohorts 100 --drops 0 --repetitions 1 --without flower nvflare

Every measurement is a fresh process on one thread, and the schemes take turns, so that noise of the machine hits all.
Ours is the whole path: opening the others' shares, rotation, dither, masks to every other institution, digests; at the
aggregator the digest of every chunk on arrival and its checksum before the sum, the masks, the check of the sum, the
next model and its hash. The update of every institution is the same, so the mean is known and is checked. Flower's
client mod and server workflow run as they are, with 10 neighbours and with as many as ours has. Peers are installed in
environments of their own.
"""  # noqa: E501 - a command

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.aggregation import peer_environment
from benchmarks.aggregation.cases import Plan, measure
from benchmarks.aggregation.report import NOTES, Row, draw, rows_of, tables

OUT = Path(__file__).parent / "out"
NAME = "secure_aggregation"
WIDTH = 160  # of the tables where there is no terminal


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, nargs="+", default=[10**6, 10**7], help="lengths of the vector")
    parser.add_argument("--cohorts", type=int, nargs="+", default=[5, 20, 100], help="numbers of institutions")
    parser.add_argument("--drops", type=int, nargs="+", default=[0, 1, 2], help="institutions that fall silent")
    parser.add_argument("--bits", type=int, nargs="+", choices=(8, 16, 32), default=[32, 16, 8], help="of our ring")
    parser.add_argument("--repetitions", type=int, default=3, help="of each measurement; one from 100 institutions on")
    parser.add_argument("--chunk", type=int, default=2**18, help="coordinates a chunk of ours")
    parser.add_argument("--flower-python", type=Path, help="interpreter with flwr 1.41.0; else one is made")
    parser.add_argument("--nvflare-python", type=Path, help="interpreter with nvflare[HE]; else one is made")
    parser.add_argument("--without", nargs="+", choices=("flower", "nvflare"), default=[], help="peers to leave out")
    parser.add_argument("--nvflare-most", type=int, default=10**6, help="coordinates up to which NVFlare is measured")
    parser.add_argument(
        "--equal-masks-most", type=int, default=20, help="institutions up to which Flower gets all masks"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for JSON and picture")
    parser.add_argument("--quick", action="store_true", help="one small case, peers only where they are given")
    options = parser.parse_args()
    if options.quick:
        options.coordinates, options.cohorts, options.drops, options.repetitions = [10**5], [5], [0, 2], 1
    return options


def find_peers(options: argparse.Namespace) -> dict[str, peer_environment.Found]:
    """Interpreters of the peers, or why there are none."""
    given = {peer_environment.FLOWER: options.flower_python, peer_environment.NVFLARE: options.nvflare_python}
    found = {}
    for peer, python in given.items():
        if peer.name in options.without:
            found[peer.name] = peer_environment.Found(None, "left out on the command line")
        else:
            found[peer.name] = peer_environment.find(peer, python, OUT / "peers", make=not options.quick)
    return found


def report(plan: Plan, rows: list[Row], skipped: dict[str, str]) -> dict[str, object]:
    """Everything that was measured, for programs."""
    return {
        "command": " ".join(["python", "benchmarks/secure_aggregation.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "cryptography")},
        "openssl": backend.openssl_version_text(),
        "threads": 1,
        "chunk_coordinates": plan.chunk,
        "peers": {peer.name: peer.requirement for peer in (peer_environment.FLOWER, peer_environment.NVFLARE)},
        "skipped": skipped,
        "rows": [asdict(row) for row in rows],
    }


def main() -> int:
    """Command line."""
    options, console = arguments(), Console(width=None if sys.stdout.isatty() else WIDTH)
    peers = find_peers(options)
    skipped = {name: found.why_not for name, found in peers.items() if not found.python}
    for name, why in skipped.items():
        console.print(f"{name} is skipped: {why}")
    plan = Plan(
        coordinates=sorted(options.coordinates),
        cohorts=sorted(options.cohorts),
        drops=sorted(options.drops),
        bits=options.bits,
        repetitions=options.repetitions,
        chunk=options.chunk,
        flower=peers["flower"].python,
        nvflare=peers["nvflare"].python,
        nvflare_most=options.nvflare_most,
        equal_masks_most=options.equal_masks_most,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for case in plan.cases:
        new = rows_of(measure(plan, case))
        for table in tables(case, new, plan.repetitions_of(case)):
            console.print(table)
        rows += new
        text = json.dumps(report(plan, rows, skipped), indent=2)
        (options.out / f"{NAME}.json").write_text(text + "\n")  # after every case: the large ones take long
        draw(rows, options.out / f"{NAME}.png")
    for note in NOTES:
        console.print(note)
    console.print(f"Written to {options.out}/{NAME}.json and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
