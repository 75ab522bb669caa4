"""How exact the mean is that comes out of the rings: the error by ring, cohort and kind of update, beside other ways.

    python benchmarks/encoding_accuracy.py --data-root data

Updates are real ones (the paper's UDEC, a local epoch on shares of Fashion-MNIST) and made ones with heavy tails. The
scale of every ring comes from the round before the one that is measured, as in a run. NMSE is the squared error of
the weighted mean over its squared norm. Beside the ring's own encoding stand float32, bfloat16, stochastic rounding
with a range for each tensor, and the ring with a dither of its own for every member. A second table lets cohort and
norm change between the rounds, counts coordinates that wrap around, and says whether the sum is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.encoding import report
from benchmarks.encoding.measuring import Case, Change, Row, measure_case, measure_changes, second_round
from benchmarks.encoding.training import Training, real_updates
from benchmarks.encoding.updates import log_normal, student_t

from fedddpm.errors import FedDDPMError
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.methods import DECODER
from fedddpm_protocol.agreement.model_layout import Manifest, coordinates
from fedddpm_protocol.agreement.spec import RINGS

_MADE = {"student-t": student_t, "log-normal": log_normal}


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    preset: str  # whose decoder the made updates are of
    cohorts: tuple[int, ...]
    bits: tuple[int, ...]
    changed_bits: tuple[int, ...]
    trainings: dict[int, tuple[int, int]]  # institutions -> images of all together, images a step


FULL = Plan("paper", (5, 20, 100), RINGS, (8, 16), {5: (2000, 32), 20: (2000, 16), 100: (3200, 16)})
QUICK = Plan("tiny", (5,), (6, 8, 12, 16, 32), (8,), {5: (80, 8)})


def decoder_of(preset: str) -> Manifest:
    return manifest(UNet(peers.IMAGE_SIZE, 1, preset), (DECODER,))


def cases(plan: Plan, tensors: Manifest, options: argparse.Namespace, console: Console) -> Iterator[Case]:
    """Kind by kind; a case is made when it is asked for, since a hundred updates take a third of a gigabyte."""
    for kind in options.updates:
        for members in plan.cohorts:
            if kind in _MADE:
                yield second_round(_MADE[kind](tensors, members))
                continue
            images, batch = plan.trainings[members]
            training = Training(members, options.data, str(options.data_root), images, batch)
            yield real_updates(training, options.out, lambda line: console.print(line, highlight=False))


def show(rows: list[Row], console: Console) -> None:
    """One table for each case."""
    for (kind, members), group in groupby(rows, lambda row: (row.updates, row.members)):
        lines = [report.row_cells(row) for row in group]
        console.print(peers.table(f"{kind} updates of {members} institutions", report.ROWS, lines))


def write(folder: Path, rows: Sequence[Row], changes: Sequence[Change], facts: dict[str, peers.Fact]) -> None:
    """``encoding_accuracy.json``, ``.md`` and ``.png`` in ``folder``."""
    cells = [(row.updates, str(row.members), *report.row_cells(row)) for row in rows]
    raw = [{**asdict(row), "met": row.met} for row in rows]
    changed = [report.change_cells(change) for change in changes]
    tables: dict[str, peers.Rows] = {
        "rows": (("updates", "n", *report.ROWS), cells, raw),
        "changes": (report.CHANGES, changed, [asdict(change) for change in changes]),
    }
    peers.write(folder / "encoding_accuracy", "Error of the mean", facts, tables)
    report.draw(rows, folder / "encoding_accuracy.png")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "out", help="folder for all that is written"
    )
    parser.add_argument("--data", default="fashion-mnist", help="what the real updates are trained on")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where it lies, or is downloaded to")
    parser.add_argument("--updates", nargs="+", choices=["real", *_MADE], default=["real", *_MADE])
    parser.add_argument("--quick", action="store_true", help="the smallest network, one cohort, a few rings: seconds")
    return parser.parse_args()


def main() -> int:
    options, console = arguments(), peers.console()
    plan = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    tensors = decoder_of(plan.preset)
    rows: list[Row] = []
    try:
        for case in cases(plan, tensors, options, console):
            measured = list(measure_case(case, plan.bits))
            show(measured, console)
            rows += measured
    except FedDDPMError as error:
        console.print(str(error))
        return 1
    changes = list(measure_changes(tensors, plan.changed_bits))
    lines = [report.change_cells(change) for change in changes]
    console.print(peers.table("When a round is not like the one before", report.CHANGES, lines))
    missed = [f"{row.updates}, {row.bits} bits, n = {row.members}: {row.nmse:.2e}" for row in rows if not row.met]
    console.print(f"Targets missed: {'; '.join(missed) or 'none'}")
    facts: dict[str, peers.Fact] = {
        "command": f"python benchmarks/encoding_accuracy.py{' --quick' if options.quick else ''}",
        "parameters_of_made_updates": coordinates(tensors),
        "real_updates": "decoder of the tiny network, second round of UDEC, a local epoch on shares skewed by label",
        "targets_missed": len(missed),
    }
    write(options.out, rows, changes, facts)
    console.print(f"Written to {options.out}/encoding_accuracy.json, .md and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
