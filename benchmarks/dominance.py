"""How much of the mean is one institution: by samples, with equal weights, and with a clip norm that follows the mean.

    python benchmarks/dominance.py
    python benchmarks/dominance.py --data fashion-mnist --data-root data

Three institutions train the tiny network (FULL, an epoch a round) by the real trainer, and sum by the real machines of
the protocol; the first has 1,600 images and the others have 100 each. Beside them stand three with 600 each. The clip
norm of the first round binds nobody; those of later ones are what the aggregator would put into its specifications.
Images are made here, of one soft spot each, unless ``--data`` says otherwise; each institution's spots have their own
place and size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.aggregation.sum_spec import sum_spec
from benchmarks.attack.scenario import EQUALS, LARGE, Scenario

from fedddpm.compute.seeds import derived_seed
from fedddpm.config import LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.data.opening import open_images, split_holdout
from fedddpm.errors import FedDDPMError
from fedddpm.experiment.aggregation.memory_round import Opened, aggregate
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.partition import flatten, manifest, unflatten
from fedddpm.model.unet import UNet
from fedddpm.rounds.guards.own_share import OwnShare, own_share
from fedddpm.updates.contribution import scaled_pieces
from fedddpm.updates.local_training import train_update
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.clipping import next_clip_norm, norms_allowed
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RoundSpec, ScaleReference, part_spec
from fedddpm_protocol.encoding.encoder import weight_units

Vector = npt.NDArray[np.float32]
PART, SIZE, DIGEST = "full", 28, bytes(32)
FIRST_BITS, BITS, CHUNK = 24, 8, 2**18
LARGEST = 100.0  # clip norm that binds nobody
HEADINGS = ("weights and clip norm", "images", "round", "clip norm", "norms", "cosine", "share", "others")


@dataclass(frozen=True)
class Way:
    """Who sums, and how."""

    name: str
    images: tuple[int, ...]
    weighting: str
    adaptive: bool
    scenario: Scenario = LARGE


@dataclass(frozen=True)
class Row:
    """One round; ``cosine`` and ``share`` are the first institution's, ``others`` the shares of the others."""

    way: str
    images: tuple[int, ...]
    round: int  # from 1
    clip_norm: float
    norms: tuple[float, ...]  # of the updates before they are clipped
    cosine: float
    share: float
    others: tuple[float, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """For people."""
        images, norms = " / ".join(map(str, self.images)), " / ".join(f"{norm:.2f}" for norm in self.norms)
        others = " / ".join(f"{share:.2f}" for share in self.others)
        clip, figures = f"{self.clip_norm:.2f}", (f"{self.cosine:.3f}", f"{self.share:.3f}")
        return (self.way, images, str(self.round), clip, norms, *figures, others)


def ways(big: int, small: int) -> tuple[Way, ...]:
    """One of ``big`` images and two of ``small``, and three that share as many out evenly."""
    uneven = (big, small, small)
    even = (sum(uneven) // 3,) * 3
    return (
        Way("by samples, fixed", uneven, "hidden", adaptive=False),
        Way("equal, fixed", uneven, "equal", adaptive=False),
        Way("equal, adaptive", uneven, "equal", adaptive=True),
        Way(EQUALS.name, even, "equal", adaptive=True, scenario=EQUALS),
    )


def spots(count: int, seed: int) -> ImageSet:
    """Grey images of one soft spot each; ``seed`` decides where spots lie and how large they are."""
    random = np.random.default_rng(seed)
    centres = random.normal(SIZE / 2 + 4 * random.uniform(-1, 1, (1, 2, 1, 1)), 4, (count, 2, 1, 1))
    distance = ((np.mgrid[:SIZE, :SIZE] - centres) ** 2).sum(axis=1)
    pixels = 255 * np.exp(-distance / random.uniform(8, 40))
    return ImageSet(torch.from_numpy(pixels.astype(np.uint8)[:, None]))


def shares_of(way: Way, options: argparse.Namespace) -> list[ImageSet]:
    """Everybody's images."""
    if options.data == "made":
        return [spots(count, seed) for seed, count in enumerate(way.images)]
    images = open_images(options.data, root=options.data_root, limit=sum(way.images))
    ends = np.cumsum(way.images)
    return [images.subset(np.arange(end - count, end)) for end, count in zip(ends, way.images, strict=True)]


class Rounds:
    """The rounds of one way, each from the model that the one before gave."""

    def __init__(self, way: Way, shares: Sequence[ImageSet], batch_size: int, learning_rate: float) -> None:
        self._way, self._settings = way, {"batch_size": batch_size, "learning_rate": learning_rate}
        self._members = tuple(f"site-{number}" for number in range(len(shares)))
        self._images = {
            member: split_holdout(share, 0.1, 0) for member, share in zip(self._members, shares, strict=True)
        }
        self._federation = Federation.found("benchmark", self._members, 0, 3)
        first = shares[0]
        probe = UNet(first.image_size, first.channels, "tiny")
        self._model = initial_network(probe.architecture, seed_of(0))
        self._base = flatten(self._model)
        self._reference, self._clip = NOTHING_KNOWN, LARGEST
        self._first: dict[str, float] = {}
        self._previous = b""

    def run(self, rounds: int) -> Iterator[Row]:
        """Row by row."""
        for number in range(rounds):
            spec = self._spec(number)
            updates = {member: self._train(spec, member) for member in self._members}
            opened = aggregate(self._federation, spec, updates, self._base, f"{self._way.name}/{number}")
            result = self._result(spec, opened)
            shares = [self._share(spec, result, member, update, opened.model) for member, update in updates.items()]
            norms = tuple(scaled_pieces(spec, update.sent).norm for update in updates.values())
            big, others = shares[0].whole, tuple(share.whole.share for share in shares[1:])
            images = self._way.images
            yield Row(self._way.name, images, number + 1, spec.clip_norm, norms, big.cosine, big.share, others)
            self._move_on(result, opened)

    def _spec(self, number: int) -> RoundSpec:
        bits = BITS if self._reference != NOTHING_KNOWN else FIRST_BITS
        part = part_spec(PART, manifest(self._model), bits, self._reference, CHUNK)
        spec = sum_spec(
            Method.FULL,
            part,
            clip_norm=self._clip,
            largest_cohort=len(self._members),
            chunk_coordinates=CHUNK,
            encoding_seed=derived_seed("dominance", number).to_bytes(32, "big"),
            roster=self._federation.roster,
        )
        hashed, shared = model_hash(manifest(self._model), self._base), {"architecture": self._model.architecture}
        cap = max(len(train) for train, _ in self._images.values())
        place = {"round": number, "rounds": number + 1, "previous_result": self._previous, "base_model_hash": hashed}
        changes = {"weighting": self._way.weighting, "weight_cap": cap, **place, **shared, **self._settings}
        return spec.with_terms_hash(**changes)

    def _train(self, spec: RoundSpec, member: str) -> LocalUpdate:
        unflatten(self._model, MODEL_PARTS, self._base)
        with tempfile.TemporaryDirectory() as folder:
            return train_update(
                self._model,
                spec,
                self._images[member],
                torch.device("cpu"),
                LocalPolicyOptions(),
                derived_seed(0, member),
                Path(folder) / "training.safetensors",
                lambda _: None,
            )

    def _result(self, spec: RoundSpec, opened: Opened) -> RoundResult:
        members, sums = opened.survivors[PART], opened.sums[PART]
        norm = opened.references[PART].norm
        part = PartResult(PART, True, DIGEST, DIGEST, members, members, sums, DIGEST, norm)
        return RoundResult.of(spec, (part,), model_hash(spec.base_manifest, opened.model))

    def _share(self, spec: RoundSpec, result: RoundResult, member: str, update: LocalUpdate, model: Vector) -> OwnShare:
        weight, pieces = weight_units(update.samples, spec), scaled_pieces(spec, update.sent)
        share = own_share(spec, result, member, weight, pieces, self._base, model)
        if share is None:
            raise FedDDPMError(f"the mean of round {spec.round + 1} is zero", "Use more images")
        return share

    def _move_on(self, result: RoundResult, opened: Opened) -> None:
        self._base, self._previous = opened.model, result.hash
        self._reference = opened.references.get(PART, ScaleReference(0.0, 0, 0))
        norms = norms_allowed(result)
        self._first = self._first or norms
        if self._way.adaptive:
            self._clip = next_clip_norm(LARGEST, self._first, norms)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for what is written")
    parser.add_argument("--data", default="made", help="made, or what fedddpm participate takes as --data")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where named sets lie")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images: seconds")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> list[Row]:
    """All rounds of all ways; each row is printed when it is there."""
    rows = []
    for way in ways(160, 10) if options.quick else ways(1600, 100):
        rounds = Rounds(way, shares_of(way, options), options.batch_size, options.learning_rate)
        for row in rounds.run(options.rounds):
            console.print("  ".join(row.cells), highlight=False)
            rows.append(row)
    return rows


def main() -> int:
    options, console = arguments(), peers.console()
    torch.set_num_threads(1)
    try:
        rows = measure(options, console)
    except FedDDPMError as error:
        console.print(str(error))
        return 1
    cells = [row.cells for row in rows]
    console.print(peers.table("One of three institutions in the mean", HEADINGS, cells))
    given = "".join(f" --{name} {value}" for name, value in (("data", options.data),) if value != "made")
    facts: dict[str, peers.Fact] = {
        "command": f"python benchmarks/dominance.py{given}{' --quick' if options.quick else ''}",
        "network": "tiny, FULL, one epoch a round",
        "images": options.data,
        "cosine": "of the mean with the first institution's update; share: of it in the mean, all shares add up to 1",
    }
    tables: dict[str, peers.Rows] = {"rows": (HEADINGS, cells, [asdict(row) for row in rows])}
    peers.write(options.out / "dominance", "One institution in the mean", facts, tables)
    console.print(f"Written to {options.out}/dominance.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
