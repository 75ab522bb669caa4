"""Frechet, kernel distance, precision and recall, against closed forms and against other code."""

import sys
import warnings

import numpy as np
import pytest

from fedddpm.errors import ConfigError, DataError
from fedddpm.evaluation.distances import Statistics, frechet, kid, precision_recall
from fedddpm.evaluation.optional_packages import PACKAGES, load_extra, require_extra


def features(count, width, seed, shift=0.0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal((count, width)) * scale + shift).astype(np.float32)


def test_frechet_of_gaussians_has_a_closed_form():
    """For commuting covariances the distance is |m1 - m2|^2 + the sum of (sqrt a - sqrt b)^2 over the eigenvalues."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 4, 6), rng.uniform(0.1, 4, 6)
    means = rng.standard_normal((2, 6))
    one = Statistics(means[0], turn @ np.diag(a) @ turn.T, 10)
    other = Statistics(means[1], turn @ np.diag(b) @ turn.T, 10)
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [200, 24])  # the second has covariances of low rank, as 1000 images have at 2048
def test_frechet_is_that_of_pytorch_fid(count, monkeypatch):
    a = Statistics.of(np.abs(features(count, 48, 1)))
    b = Statistics.of(np.abs(features(500, 48, 2, shift=0.1)))
    theirs = load_extra("pytorch_fid.fid_score")
    root = theirs.linalg.sqrtm
    # SciPy 1.18 takes away the argument that pytorch-fid 0.3 gives; what it asks for is a pair.
    monkeypatch.setattr(theirs.linalg, "sqrtm", lambda matrix, disp=True: root(matrix) if disp else (root(matrix), 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of a singular matrix
        expected = theirs.calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet(a, b) == pytest.approx(float(np.real(expected)), rel=1e-5)
    assert expected > 0.5


def test_statistics_are_those_of_numpy_in_double_precision():
    data = features(50, 5, 3, shift=100)
    found = Statistics.of(data)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, data.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(data.astype(np.float64), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("bad", [features(1, 4, 0), np.full((5, 4), np.nan, dtype=np.float32)])
def test_what_has_no_covariance_is_refused(bad):
    with pytest.raises(DataError):
        Statistics.of(bad)


def test_features_of_two_nets_are_not_compared():
    with pytest.raises(DataError, match="one feature net for both"):
        frechet(Statistics.of(features(9, 4, 0)), Statistics.of(features(9, 5, 0)))


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel():
    real, fake = features(60, 8, 1), features(60, 8, 2, shift=0.5)
    kernel = lambda x, y: (x.astype(np.float64) @ y.T / 8 + 1) ** 3  # noqa: E731
    off = ~np.eye(60, dtype=bool)
    expected = kernel(real, real)[off].mean() + kernel(fake, fake)[off].mean() - 2 * kernel(real, fake).mean()
    mean, spread = kid(real, fake)
    assert mean == pytest.approx(expected, abs=3 * spread / 10)  # over 100 subsets of 30
    assert 0 < spread < expected
    assert abs(kid(features(300, 8, 3), features(300, 8, 4))[0]) < 0.1 < mean
    assert kid(real, features(90, 8, 5), seed=1) == kid(real, features(90, 8, 5), seed=1)


def test_precision_and_recall_tell_missing_variety_from_missing_quality():
    real = features(300, 4, 1)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, features(300, 4, 2, shift=50)) == (0.0, 0.0)
    precision, recall = precision_recall(real, features(300, 4, 2, scale=0.1))  # good images, always the same
    assert precision > 0.95
    assert recall < 0.1
    precision, recall = precision_recall(real, features(300, 4, 2, scale=4))  # all there is, and much that is not
    assert precision < 0.3
    assert recall > 0.8


def test_too_few_images_for_the_companions():
    with pytest.raises(DataError, match="neighbours"):
        precision_recall(features(3, 4, 0), features(9, 4, 0))
    with pytest.raises(DataError, match="four images"):
        kid(features(1, 4, 0), features(9, 4, 0))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_extra_is_named_with_its_command(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install 'fedddpm-sdk\[evaluation\]'"):
        require_extra()
    monkeypatch.undo()
    require_extra()


def test_measuring_without_the_extra_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.metric_fid", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedddpm-sdk\[evaluation\]'"):
        frechet(Statistics.of(features(9, 4, 0)), Statistics.of(features(9, 4, 1)))
