"""Tables and picture of attacks.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks.attack.images import Attack
from benchmarks.attack.scores import as_floats, correlations
from benchmarks.attack.terms import Row
from matplotlib.figure import Figure
from torch import Tensor

from fedddpm.data.image_set import ImageSet

IMAGES = ("randomness", "adversary", "by name", "worst", "chance", "best match", "chance of it", "CPU s")
TERMS = ("what the others are offered", "cosine with the victim's update", "where terms are bound to a base")


def attack_cells(attack: Attack) -> tuple[str, ...]:
    mine, lucky = attack.score, attack.chance
    by_luck = None if mine.by_name is None else lucky.by_name
    numbers = (mine.by_name, mine.worst_by_name, by_luck, mine.best_match, lucky.best_match)
    return (
        attack.case.randomness,
        attack.case.adversary.name,
        *("" if n is None else f"{n:.3f}" for n in numbers),
        f"{attack.seconds:.0f}",
    )


def raw(attack: Attack) -> dict[str, object]:
    scores = {"score": asdict(attack.score), "chance": asdict(attack.chance)}
    case = {"randomness": attack.case.randomness, "adversary": attack.case.adversary.name}
    return {**case, **scores, "seconds": attack.seconds}


def term_cells(row: Row) -> tuple[str, ...]:
    return row.scenario, f"{row.cosine:.6f}", "refused" if row.bound is None else f"{row.bound:.6f}"


def draw(shares: Sequence[ImageSet], attacks: Sequence[Attack], path: Path) -> None:
    """The true images in the first row, then one row an attack.

    Below each image stands what is said to be of it, or what is most like it where nothing is said.
    """
    truth = torch.cat([as_floats(share) for share in shares])
    lines = [("true images", truth)]
    lines += [(f"{one.case.randomness}\n{one.case.adversary.name}", _matched(one, truth)) for one in attacks]
    figure = Figure(figsize=(len(truth) + 2, 1.1 * len(lines)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(lines), len(truth), squeeze=False)
    for row, (label, images) in zip(panels, lines, strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize="small")
        for panel, image in zip(row, images, strict=True):
            panel.imshow(image[0].clamp(-1, 1), cmap="gray", vmin=-1, vmax=1)
            panel.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _matched(attack: Attack, truth: Tensor) -> Tensor:
    if attack.score.by_name is not None:
        return attack.found
    return attack.found[torch.from_numpy(correlations(attack.found, truth).argmax(axis=0))]
