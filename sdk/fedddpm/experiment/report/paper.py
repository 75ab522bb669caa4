"""The published results that a study is put beside: arXiv 2406.12575 (FedDiffuse), Fashion-MNIST.

FID by pytorch-fid against the test split, from images that the public code saved without rescaling (which clips
everything below mid-grey); whether 1000 or 5000 images were drawn is not said. "+-" is as printed there.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2406.12575"
CENTRALISED = "centralised"
CENTRALISED_EPOCHS = 15
IID, LABEL_SKEW, QUANTITY_SKEW = "iid", "label-skew", "quantity-skew"
ROUNDS, LOCAL_EPOCHS, BATCH, NETWORK = 15, 5, 128, "paper"
DATASET = "fashion-mnist"


@dataclass(frozen=True)
class Published:
    """One cell of the paper's table."""

    method: str
    institutions: int
    split: str
    local_epochs: int
    fid: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.fid:g}" if self.spread is None else f"{self.fid:g} ± {self.spread:g}"


@dataclass(frozen=True)
class PublishedTraffic:
    """N of one method over 15 rounds, in millions of parameters, and what it saves against FULL in per cent."""

    millions: float
    cut: float | None


def _rows() -> dict[tuple[str, int, str, int], Published]:
    cells = [Published(CENTRALISED, 1, IID, CENTRALISED_EPOCHS, 43, 1)]
    for method, by_split in _FIDS.items():
        for split, row in by_split.items():
            for k, (fid, spread) in zip(_INSTITUTIONS, row, strict=True):
                cells.append(Published(method, k, split, LOCAL_EPOCHS, fid, spread))
    for k, row_of_epochs in _FULL_IID_BY_EPOCHS.items():
        for epochs, fid in row_of_epochs.items():
            if epochs != LOCAL_EPOCHS:  # the table above has that one with its spread
                cells.append(Published("FULL", k, IID, epochs, fid))
    return {(cell.method, cell.institutions, cell.split, cell.local_epochs): cell for cell in cells}


_INSTITUTIONS = (2, 5, 10)
_FIDS: dict[str, dict[str, tuple[tuple[float, float | None], ...]]] = {
    "FULL": {
        IID: ((39, 2), (39, 4), (61, 2)),
        LABEL_SKEW: ((33, None), (43, None), (64, None)),
        QUANTITY_SKEW: ((33, None), (23, None), (76, None)),
    },
    "USPLIT": {
        IID: ((37, None), (41, None), (62, None)),
        LABEL_SKEW: ((38, None), (61, None), (70, None)),
        QUANTITY_SKEW: ((55, None), (39, None), (87, None)),
    },
    "ULATDEC": {
        IID: ((45, 13), (53, 15), (70, 14)),
        LABEL_SKEW: ((49, None), (72, None), (101, None)),
        QUANTITY_SKEW: ((54, None), (122, None), (137, None)),
    },
    "UDEC": {
        IID: ((49, 16), (51, 15), (72, 20)),
        LABEL_SKEW: ((49, None), (75, None), (98, None)),
        QUANTITY_SKEW: ((78, None), (139, None), (147, None)),
    },
}
_FULL_IID_BY_EPOCHS: dict[int, dict[int, float]] = {
    2: {1: 66, 2: 41, 3: 35, 5: 28, 8: 32},
    5: {1: 105, 2: 56, 3: 49, 5: 39, 8: 32},
    10: {1: 147, 2: 111, 3: 71, 5: 58, 8: 48},
}
_TRAFFIC: dict[str, tuple[PublishedTraffic, ...]] = {
    "FULL": (PublishedTraffic(179.78, None), PublishedTraffic(449.45, None), PublishedTraffic(898.89, None)),
    "USPLIT": (PublishedTraffic(134.83, 25.0), PublishedTraffic(343.73, 23.5), PublishedTraffic(674.17, 25.0)),
    "ULATDEC": (PublishedTraffic(105.50, 41.3), PublishedTraffic(263.75, 41.3), PublishedTraffic(527.51, 41.3)),
    "UDEC": (PublishedTraffic(47.54, 73.6), PublishedTraffic(118.85, 73.6), PublishedTraffic(237.69, 73.6)),
}
PUBLISHED = _rows()


def published(method: str, institutions: int, split: str, local_epochs: int = LOCAL_EPOCHS) -> Published | None:
    """The paper's FID for this setting, or None where it has none.

    The centralised figure is asked for as ``published("centralised", 1, "iid", 15)``.
    """
    return PUBLISHED.get((method, institutions, split, local_epochs))


def published_traffic(method: str, institutions: int) -> PublishedTraffic | None:
    """The paper's N over 15 rounds on Fashion-MNIST, or None where it has none."""
    if method not in _TRAFFIC or institutions not in _INSTITUTIONS:
        return None
    return _TRAFFIC[method][_INSTITUTIONS.index(institutions)]
