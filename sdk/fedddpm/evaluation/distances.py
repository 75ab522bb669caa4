"""Distances between two sets of features: Frechet, kernel distance, precision and recall.

All three are torch-fidelity's functions, called on features directly. Its Frechet distance is pytorch-fid's (Heusel
2017, arXiv 1706.08500, eq. 6) with the trace of the matrix root taken from eigenvalues: the same number to twelve
digits, also for covariances of low rank, without ``scipy.linalg.sqrtm(disp=...)``, which SciPy 1.18 removes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedddpm.errors import DataError
from fedddpm.evaluation.features import Features
from fedddpm.evaluation.optional_packages import load_extra

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # Binkowski 2018, section 4.1; fewer where there are fewer images
NEIGHBOURS = 3  # Kynkaanniemi 2019, section 3.1
_ROWS = 1000  # of a distance matrix at a time


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [D] and covariance [D, D] of ``count`` feature vectors, float64."""

    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, features: Features) -> Statistics:
        """The statistics of features [N, D].

        Raises:
            DataError: fewer than two vectors, or a value that is not finite.
        """
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise DataError(
                f"features of shape {list(features.shape)} have no covariance, or are not finite",
                "Score at least two images",
            )
        wide = features.astype(np.float64)
        return cls(wide.mean(axis=0), np.atleast_2d(np.cov(wide, rowvar=False)), len(wide))


def frechet(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Raises:
        DataError: the two come from features of different width.
        ConfigError: the extra is not installed.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"features of width {len(a.mean)} and {len(b.mean)} cannot be compared", "Use one feature net for both"
        )
    module = load_extra("torch_fidelity.metric_fid")
    pair = ({"mu": one.mean, "sigma": one.covariance} for one in (a, b))
    return float(module.fid_statistics_to_metric(*pair, verbose=False)[module.KEY_METRIC_FID])


def kid(real: Features, fake: Features, seed: int = 0) -> tuple[float, float]:
    """Kernel distance (Binkowski 2018, arXiv 1801.01401): mean and standard deviation over 100 random subsets.

    The cubic kernel and the unbiased estimate of torch-fidelity; subsets of 1000, or of half where there are
    fewer than twice as many: subsets that are always the same would not tell how sure the mean is.

    Raises:
        DataError: fewer than four vectors on a side.
        ConfigError: the extra is not installed.
    """
    size = min(KID_SUBSET_SIZE, len(real) // 2, len(fake) // 2)
    if size < 2:
        raise DataError("the kernel distance needs four images on each side", "Score more images")
    module = load_extra("torch_fidelity.metric_kid")
    found = module.kid_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return float(found[module.KEY_METRIC_KID_MEAN]), float(found[module.KEY_METRIC_KID_STD])


def precision_recall(real: Features, fake: Features) -> tuple[float, float]:
    """Share of ``fake`` that lies among the real ones, and of ``real`` that lies among the fake ones.

    Kynkaanniemi 2019 (arXiv 1904.06991) with k = 3. Both depend on the counts, so give as many of one as of the other.

    Raises:
        DataError: not more than k vectors on a side.
        ConfigError: the extra is not installed.
    """
    if min(len(real), len(fake)) <= NEIGHBOURS:
        raise DataError(
            f"precision and recall look at {NEIGHBOURS} neighbours, so {min(len(real), len(fake))} images are too few",
            "Score more images",
        )
    module = load_extra("torch_fidelity.metric_prc")
    found = module.prc_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[module.KEY_METRIC_PRECISION]), float(found[module.KEY_METRIC_RECALL])
