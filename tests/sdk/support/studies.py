"""Made-up studies, as the experiment would have written them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fedddpm.evaluation.scores import Scores
from fedddpm.experiment.results import InstitutionRecord, Measured, RoundRecord, RunRecord, StudyResults

SIZES = {"encoder": 1_280_642, "bottleneck": 999_376, "decoder": 716_297}
P, M, U = sum(SIZES.values()), SIZES["bottleneck"], SIZES["decoder"]
LEVELS = {"FULL": 40.0, "USPLIT": 45.0, "ULATDEC": 55.0, "UDEC": 60.0, "centralised": 35.0}


def planned(method: str, k: int, rounds: int) -> int:
    """N by the closed formulas of the paper."""
    return {
        "FULL": 2 * k * rounds * P,
        "USPLIT": 3 * k * rounds * P // 2,
        "ULATDEC": k * (P + (2 * rounds - 1) * (U + M)),
        "UDEC": k * (P + (2 * rounds - 1) * U),
        "centralised": 0,
    }[method]


def payload(method: str, k: int, round_: int, bits: int = 8) -> dict[str, int]:
    """Bytes of a round: 16 bits a parameter in the first, ``bits`` later, no padding; half a network up with USPLIT."""
    shared = {"FULL": P, "USPLIT": P, "ULATDEC": M + U, "UDEC": U, "centralised": 0}[method]
    down = k * shared * (bits if round_ else 16) // 8
    return {"payload_up": down // 2 if method == "USPLIT" else down, "payload_down": down}


def scores(distance: float, metric: Literal["FID", "FD"] = "FID", n: int = 1000, saving: str = "rescaled") -> Scores:
    net, floor = ("inception-2048", 23.2) if metric == "FID" else ("fashion-classifier", 0.003)
    return Scores(metric, net, n, distance, floor, 0.0123, 0.0021, 0.61, 0.42, saving)


def members(k: int, seed: int = 0) -> list[InstitutionRecord]:
    rng = np.random.default_rng(seed)
    counts = [[int(c) for c in rng.integers(0, 900, 10)] for _ in range(k)]
    return [InstitutionRecord(name=f"site-{i + 1:03d}", images=sum(row), labels=row) for i, row in enumerate(counts)]


def made_run(
    method: str = "FULL",
    seed: int = 0,
    *,
    k: int = 5,
    split: str = "iid",
    aggregation: Literal["secure", "plain", "none"] = "secure",
    network: str = "paper",
    rounds: int = 15,
    epochs: int = 5,
    done: int | None = None,
    savings: tuple[str, ...] = ("rescaled",),
    bits: int = 0,
) -> RunRecord:
    """A run of ``rounds`` rounds of which ``done`` are over; all of them if that is None."""
    local, level = method in ("ULATDEC", "UDEC"), LEVELS[method] + seed
    records = [
        RoundRecord(
            round=r,
            epochs=epochs * (r + 1),
            train_loss=0.05 + math.exp(-r / 2) / 5,
            loss_before=None if r == 0 else 0.07,
            loss=0.04 + (LEVELS[method] / 1000) + seed / 200 + math.exp(-r / 2) / 4,
            survivors=k if method != "centralised" else 0,
            aggregation_s=0.4,
            training_s=12.0,
            **payload(method, k, r, bits or 8),
            measured=Measured(epochs=epochs * (r + 1), pooled=scores(level * (0.1 + 2 / (r + 1)), "FD", 240)),
            grid=f"runs/{method}-{k}-{seed}/round-{r:03d}.png",
        )
        for r in range(rounds if done is None else done)
    ]
    clients = {f"site-{i + 1:03d}": scores(level + 3 * i, n=500) for i in range(k)} if local else {}
    final = [
        Measured(epochs=rounds * epochs, pooled=scores(level, n=n, saving=saving), clients=clients)
        for saving in savings
        for n in (1000, 5000)
    ]
    if method == "centralised":
        final.append(Measured(epochs=15, pooled=scores(level + 8)))
    return RunRecord(
        name=f"{method.lower()}-k{k}-{split}-{network}-b{bits}-s{seed}",
        method=method,
        institutions=k if method != "centralised" else 1,
        split=split if method != "centralised" else "all",
        network=network,
        seed=seed,
        bits=bits if method != "centralised" else 0,
        aggregation=aggregation if method != "centralised" else "none",
        parameters=SIZES,
        members=members(k, seed) if method != "centralised" else members(1),
        planned_traffic=planned(method, k, rounds),
        rounds=records,
        final=final if done is None else [],
        seconds=60.0 * len(records),
        done=done is None,
    )


def made_study(*runs: RunRecord, **settings: object) -> StudyResults:
    return StudyResults(
        name="made-up",
        command="fedddpm experiment --preset made-up --out study",
        settings={
            "data": "fashion-mnist",
            "networks": ["paper"],
            "rounds": 15,
            "epochs": 5,
            "batch_size": 128,
            **settings,
        },
        machine="2 cores, no GPU",
        versions={"fedddpm": "0.1.0", "torch": "2.13.0"},
        nets=["inception-2048: weights of 2015-12-05, mapped onto pytorch-fid's network, features agree to 1.2e-06"],
        notes=["Images of <b>the</b> first seed | are shown"],
        seconds=4000,
        runs=list(runs),
    )


def write_grids(folder: Path, study: StudyResults, side: int = 56) -> None:
    """A picture where each round says it has one."""
    rng = np.random.default_rng(0)
    for run in study.runs:
        for record in run.rounds:
            if record.grid:
                (folder / record.grid).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / record.grid)
