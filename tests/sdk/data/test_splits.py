"""Spreading a data set over institutions."""

from collections.abc import Callable

import numpy as np
import pytest

from fedddpm.data.splits import Indices, iid, label_skew, quantity_skew
from fedddpm.errors import DataError

LABELS = np.repeat(np.arange(10), 300)
Split = Callable[[Indices, int, int], list[Indices]]


def shares_of_classes(parts: list[Indices]) -> np.ndarray:
    return np.array([np.bincount(LABELS[part], minlength=10) / len(part) for part in parts])


@pytest.mark.parametrize("split", [iid, label_skew, quantity_skew])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_every_sample_goes_to_exactly_one_institution(split: Split, k: int) -> None:
    parts = split(LABELS, k, 7)
    assert len(parts) == k
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    assert min(map(len, parts)) >= 10
    again, other = split(LABELS, k, 7), split(LABELS, k, 8)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert k == 1 or not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_the_kinds_of_skew() -> None:
    equal, labels, quantity = (split(LABELS, 5, 1) for split in (iid, label_skew, quantity_skew))
    assert {len(part) for part in equal} == {600}
    assert np.abs(shares_of_classes(equal) - 0.1).max() < 0.05
    assert np.abs(shares_of_classes(labels) - 0.1).max() > 0.15
    sizes = [len(part) for part in quantity]
    assert max(sizes) > 2 * min(sizes)
    large = [part for part in quantity if len(part) > 200]
    assert np.abs(shares_of_classes(large) - 0.1).max() < 0.1


def test_label_skew_has_the_spread_of_its_dirichlet_distribution() -> None:
    shares = []
    for seed in range(200):
        counts = np.array([np.bincount(LABELS[part], minlength=10) for part in label_skew(LABELS, 2, seed)])
        shares.append(counts[0] / 300)
    # Dirichlet(0.5, 0.5): each share is Beta(0.5, 0.5), mean 1/2, variance 1/8.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / 8, rel=0.08)


@pytest.mark.parametrize("split", [label_skew, quantity_skew])
def test_too_few_samples_are_told(split: Split) -> None:
    with pytest.raises(DataError, match="49 samples do not go round 5 institutions with at least 10 each"):
        split(LABELS[:49], 5, 0)
    with pytest.raises(DataError):
        split(LABELS, 0, 0)
    with pytest.raises(DataError, match="left one of 10 institutions fewer than 10 of the 100 samples each time"):
        split(LABELS[:100], 10, 0)  # possible in principle
    with pytest.raises(DataError):
        iid(LABELS[:2], 3, 0)


@pytest.mark.parametrize("split", [label_skew, quantity_skew])
@pytest.mark.parametrize("concentration", [0.0, -1.0, float("nan")])
def test_a_concentration_is_positive(split: Callable[..., list[Indices]], concentration: float) -> None:
    with pytest.raises(DataError, match="no concentration of"):
        split(LABELS, 5, 0, concentration)
