"""Ways to spread one data set over k institutions, for experiments (paper.md's settings; Hsu 2019, arXiv 1909.06335).

Each function returns k arrays of indices that part the whole set. The same seed gives the same split.
"""

import numpy as np
import numpy.typing as npt

from fedddpm.errors import DataError

Indices = npt.NDArray[np.int64]
CONCENTRATION = 0.5  # of the Dirichlet distribution: smaller is more uneven
SMALLEST_SHARE = 10  # samples every institution gets at least
_TRIES = 1000


def iid(labels: npt.NDArray[np.int64], k: int, seed: int) -> list[Indices]:
    """Shuffle and cut into k equal shares (sizes differ by one at most).

    Raises:
        DataError: there are too few samples for k institutions.
    """
    rng = _rng(len(labels), k, seed)
    return [np.sort(share) for share in np.array_split(rng.permutation(len(labels)), k)]


def label_skew(
    labels: npt.NDArray[np.int64],
    k: int,
    seed: int,
    concentration: float = CONCENTRATION,
    smallest: int = SMALLEST_SHARE,
) -> list[Indices]:
    """Part every class by its own draw from Dirichlet(concentration); drawn again until all have ``smallest`` samples.

    Raises:
        DataError: there are too few samples for k institutions.
    """
    rng = _rng(len(labels), k, seed, smallest, concentration)
    for _ in range(_TRIES):
        shares: list[list[Indices]] = [[] for _ in range(k)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            for share, piece in zip(shares, np.split(members, _cuts(rng, len(members), k, concentration)), strict=True):
                share.append(piece)
        whole = [np.sort(np.concatenate(share)) for share in shares]
        if min(map(len, whole)) >= smallest:
            return whole
    raise _never_drawn(len(labels), k, smallest, concentration)


def quantity_skew(
    labels: npt.NDArray[np.int64],
    k: int,
    seed: int,
    concentration: float = CONCENTRATION,
    smallest: int = SMALLEST_SHARE,
) -> list[Indices]:
    """Same classes, different sizes: k shares in proportions from Dirichlet(concentration), each at least ``smallest``.

    Raises:
        DataError: there are too few samples for k institutions.
    """
    rng = _rng(len(labels), k, seed, smallest, concentration)
    for _ in range(_TRIES):
        cuts = _cuts(rng, len(labels), k, concentration)
        shares = np.split(rng.permutation(len(labels)), cuts)
        if min(map(len, shares)) >= smallest:
            return [np.sort(share) for share in shares]
    raise _never_drawn(len(labels), k, smallest, concentration)


def _cuts(rng: np.random.Generator, count: int, k: int, concentration: float) -> Indices:
    """The k - 1 places at which ``count`` things are cut in random proportions."""
    proportions = rng.dirichlet(np.full(k, concentration))
    return (np.cumsum(proportions)[:-1] * count).round().astype(np.int64)


def _rng(count: int, k: int, seed: int, smallest: int = 1, concentration: float = CONCENTRATION) -> np.random.Generator:
    if not concentration > 0:
        raise DataError(f"a Dirichlet distribution has no concentration of {concentration}", "Use one above 0")
    if k < 1 or count < k * smallest:
        raise _too_few(count, k, smallest)
    return np.random.default_rng(seed)


def _too_few(count: int, k: int, smallest: int) -> DataError:
    return DataError(
        f"{count} samples do not go round {k} institutions with at least {smallest} each",
        "Use fewer institutions or more samples",
    )


def _never_drawn(count: int, k: int, smallest: int, concentration: float) -> DataError:
    return DataError(
        f"{_TRIES} draws from Dirichlet({concentration:g}) left one of {k} institutions fewer than {smallest} of the"
        f" {count} samples each time",
        "Use fewer institutions, more samples or a larger concentration",
    )
