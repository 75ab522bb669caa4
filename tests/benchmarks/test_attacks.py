"""The benchmark of attacks: what it is made of, and what it writes. The attacks: tests/adversary/test_scenarios.py"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.attack.images import CASES
from benchmarks.attack.scores import as_floats, chance, score, shares_of
from benchmarks.attack.terms import TERMS, Federation, cosine
from benchmarks.attack.training import institution_seed, offer, predicted, train
from tests.support.repository import ROOT

from fedddpm.data.image_set import ImageSet
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.unet import architecture_of
from fedddpm_protocol.errors import TermsError

ONE_LEVEL = architecture_of(8, 1, "tiny", 16, (1,))


def pictures(count: int, seed: int = 0) -> ImageSet:
    """Every pixel at random: no picture is like another."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet(torch.from_numpy(values))


def test_predicted_draws_are_those_of_the_training() -> None:
    """The same update comes out of the same seed, another out of a secret one."""
    base, images = initial_network(ONE_LEVEL, seed_of(1)), pictures(4)
    spec = offer(base, "run", 3, TERMS)
    public = institution_seed("site-0", secret=False)
    assert (train(base, spec, images, public).delta == train(base, spec, images, public).delta).all()
    secret = [institution_seed("site-0", secret=True) for _ in range(2)]
    assert len({public, *secret}) == 3
    assert (train(base, spec, images, public).delta != train(base, spec, images, secret[0]).delta).any()
    assert sorted(predicted(spec, "site-0", 4).order) == [0, 1, 2, 3]
    assert (predicted(spec, "site-0", 4).noise != predicted(spec, "site-1", 4).noise).all()


def test_scores() -> None:
    truth, others = as_floats(pictures(6)), as_floats(pictures(60, seed=1))
    middle = torch.zeros_like(truth[0])
    exact = score(truth * 0.5 + 0.1, truth, middle)
    assert (exact.by_name, exact.worst_by_name, exact.best_match) == pytest.approx((1, 1, 1))
    moved = score(truth.roll(1, 0), truth, middle)
    assert moved.by_name < 0.5 < moved.best_match
    flat = score(torch.zeros_like(truth), truth, middle, named=False)
    assert (flat.by_name, flat.best_match) == (None, 0)
    alike = torch.linspace(-3, 3, 64).reshape(1, 8, 8)  # much that all have in common counts for nothing
    assert score(truth.roll(1, 0) + alike, truth + alike, alike).by_name == pytest.approx(moved.by_name, abs=1e-5)
    assert 0 < chance(truth, others).best_match < 0.4


@pytest.mark.parametrize("bound", [False, True])
def test_a_stored_update_is_used_again_and_on_other_terms_only_where_they_are_not_bound(
    tmp_path: Path, bound: bool
) -> None:
    shares, _ = shares_of(pictures(60), 3, 8, 0)
    federation = Federation(initial_network(ONE_LEVEL, seed_of(1)), shares, tmp_path, bound=bound)
    first = federation.sum(TERMS, 0)
    assert (federation.sum(TERMS, 1) == first).all()
    with pytest.raises(TermsError) if bound else nullcontext():
        assert (federation.sum(replace(TERMS, learning_rate=1e-30), 2) == first).all()
    assert cosine(first, -first) == pytest.approx(-1)


@pytest.mark.soak
def test_a_quick_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", images=pictures(60).images[:, 0].numpy())
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks.py"), "--quick", "--out", str(tmp_path)]
    command += ["--data", str(tmp_path / "noise.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of one secure sum" in done.stdout
    result = json.loads((tmp_path / "attacks.json").read_text())
    assert [(row["randomness"], row["adversary"]) for row in result["images"]] == [
        (case.randomness, case.adversary.name) for case in CASES
    ]
    assert result["images"][0]["score"]["by_name"] > 0.9 > 0.4 > result["images"][1]["score"]["by_name"]
    check_terms({row["scenario"]: row["cosine"] for row in result["terms"]})
    bound = {row["scenario"]: row["bound"] for row in result["terms"]}
    assert bound.pop("the same terms for all") == result["terms"][0]["cosine"]
    assert set(bound.values()) == {None}
    assert "others at learning rate 1e-30" in (tmp_path / "attacks.md").read_text()
    assert (tmp_path / "attacks.png").stat().st_size > 5_000


def check_terms(cosines: dict[str, float]) -> None:
    honest = cosines.pop("the same terms for all")
    assert 0.3 < honest < 0.8
    assert all(value > honest for value in cosines.values())
    for scenario in ("others at learning rate 1e-30", "two sums, victim trained again between"):
        assert cosines[scenario] > 0.999999
