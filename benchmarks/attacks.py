"""What a malicious aggregator gets out of honest institutions: known attacks on the real training code, in figures.

    python benchmarks/attacks.py --data-root data

Images: the aggregator makes a first model whose first step of training is the gradient itself, asks for one step, and
inverts the gradient that the secure sum of all institutions shows. It repeats the institutions' random choices where
they follow from public words; where they do not it guesses them all the same, or solves for the noise with the images.

Terms: the aggregator lets one institution train alone and calls everybody to another attempt on the same base model,
on terms that leave the others nothing to send.

Correlations are of what sets an image apart from the mean of its kind, and stand beside those of unrelated images of
the same kind, which is what no information gives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.attack import report
from benchmarks.attack.images import Attack, Setting, attack_all
from benchmarks.attack.scores import downscaled, shares_of
from benchmarks.attack.terms import Row, measure

from fedddpm.data.image_set import ImageSet
from fedddpm.data.opening import open_images
from fedddpm.errors import FedDDPMError
from fedddpm.model.unet import UNet, architecture_of

_SEED = 0  # of the choice of images and of the adversary


@dataclass(frozen=True)
class Plan:
    """What is attacked, and how patiently."""

    setting: Setting
    members: int  # of the attack for images
    images: int  # of each of them
    sites: int  # of the attack by terms
    site_images: int
    site_size: int  # pixels


FULL = Plan(Setting(architecture_of(8, 1, "tiny"), 20_000, 600, 2000), 3, 4, 4, 200, 16)
QUICK = Plan(Setting(architecture_of(8, 1, "tiny", 16, (1,)), 200, 120, 60), 2, 2, 3, 16, 8)


def images_out_of_a_sum(plan: Plan, data: ImageSet, console: Console) -> tuple[list[ImageSet], list[Attack]]:
    """The true images by institution, and all attacks on them."""
    small = downscaled(data, plan.setting.architecture.image_size)
    shares, others = shares_of(small, plan.members, plan.images, _SEED)
    attacks = []
    for attack in attack_all(plan.setting, shares, others):
        attacks.append(attack)
        said = f"{attack.case.randomness} randomness, adversary {attack.case.adversary.name}: {attack.seconds:.0f} s"
        console.print(said, highlight=False)
    title = f"{plan.members * plan.images} images of {plan.members} institutions out of one secure sum"
    console.print(peers.table(title, report.IMAGES, [report.attack_cells(one) for one in attacks]))
    return shares, attacks


def one_out_of_many(plan: Plan, data: ImageSet, console: Console) -> list[Row]:
    """All attacks by other terms."""
    shares, _ = shares_of(downscaled(data, plan.site_size), plan.sites, plan.site_images, _SEED)
    torch.manual_seed(_SEED)
    rows = list(measure(UNet(plan.site_size, 1, "tiny"), shares))
    title = f"One update out of the sum of {plan.sites} institutions"
    console.print(peers.table(title, report.TERMS, [report.term_cells(row) for row in rows]))
    return rows


def write(folder: Path, facts: dict[str, peers.Fact], attacks: Sequence[Attack], rows: Sequence[Row]) -> None:
    """``attacks.json`` and ``attacks.md`` in ``folder``."""
    tables: dict[str, peers.Rows] = {
        "images": (
            report.IMAGES,
            [report.attack_cells(one) for one in attacks],
            [report.raw(one) for one in attacks],
        ),
        "terms": (report.TERMS, [report.term_cells(row) for row in rows], [asdict(row) for row in rows]),
    }
    peers.write(folder / "attacks", "What a malicious aggregator gets", facts, tables)


def facts_of(plan: Plan, options: argparse.Namespace) -> dict[str, peers.Fact]:
    size, wide = plan.setting.architecture.image_size, plan.site_size
    return {
        "command": f"python benchmarks/attacks.py{' --quick' if options.quick else ''}",
        "pictures": Path(options.data).stem,
        "cohort_of_images": f"{plan.images} of {size}x{size} pixels from each of {plan.members} institutions, one step",
        "cohort_of_terms": f"{plan.site_images} of {wide}x{wide} pixels in each of {plan.sites} institutions",
        "chance": "as many unrelated images instead of the reconstructions, mean of 50 draws",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "out", help="folder for all that is written"
    )
    parser.add_argument("--data", default="fashion-mnist", help="whose images are attacked: what open_images takes")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where it lies, or is downloaded to")
    parser.add_argument("--quick", action="store_true", help="the smallest network, two images each: seconds")
    return parser.parse_args()


def main() -> int:
    options, console = arguments(), peers.console()
    plan = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    try:
        data = open_images(options.data, root=options.data_root)
        shares, attacks = images_out_of_a_sum(plan, data, console)
        rows = one_out_of_many(plan, data, console)
    except FedDDPMError as error:
        console.print(str(error))
        return 1
    write(options.out, facts_of(plan, options), attacks, rows)
    report.draw(shares, attacks, options.out / "attacks.png")
    console.print(f"Written to {options.out}/attacks.json, .md and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
