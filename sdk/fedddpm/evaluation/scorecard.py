"""Scores as a table on the terminal and as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedddpm.evaluation.scores import Scores
from fedddpm.files.atomic import write_atomic

FORMAT = "fedddpm/scores/1"


def print_scores(console: Console, scores: Sequence[Scores], notes: Sequence[str]) -> None:
    """One line for each; the floor stands beside the distance, because neither says much without the other."""
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "distance", "floor", "KID x 1000", "precision", "recall", "saving"):
        table.add_column(name, justify="left" if name in ("metric", "saving") else "right", no_wrap=True)
    for one in scores:
        kernel = "" if one.kid is None or one.kid_std is None else f"{1000 * one.kid:.2f} ± {1000 * one.kid_std:.2f}"
        shares = ("" if share is None else f"{share:.3f}" for share in (one.precision, one.recall))
        digits = 2 if one.metric == "FID" else 4
        distances = (f"{value:.{digits}f}" for value in (one.distance, one.floor))
        table.add_row(one.label, *distances, kernel, *shares, one.saving)
    console.print(table)
    console.print("floor: the distance of as many real training images", style="dim", highlight=False)
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)


def write_scores(path: Path, scores: Sequence[Scores], images: str, reference: str, notes: Sequence[str]) -> None:
    """Write a JSON object: format, what was scored against what, the nets and how they were proven, the scores.

    Raises:
        CheckpointError: the file cannot be written.
    """
    found = {
        "format": FORMAT,
        "images": images,
        "reference": reference,
        "notes": list(notes),
        "scores": [asdict(one) | {"label": one.label} for one in scores],
    }
    write_atomic(path, json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")
