"""The scores of one set of images, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scores:
    """How far ``n`` images are from the real test images, seen through one feature net.

    ``metric`` is "FID" only for the Inception features of Heusel 2017 (arXiv 1706.08500); a distance in the features
    of any other net is "FD", and the two cannot be compared.
    """

    metric: Literal["FID", "FD"]
    net: str
    n: int
    distance: float
    floor: float  # the same distance for n real training images: no generator can be asked to be below
    kid: float | None = None  # kernel distance (Binkowski 2018), mean over subsets
    kid_std: float | None = None
    precision: float | None = None  # Kynkaanniemi 2019
    recall: float | None = None
    saving: str = "rescaled"  # how images became bytes; "clipped" loses everything below mid-grey

    @property
    def label(self) -> str:
        """The metric's name with its sample count, as it must be printed."""
        return f"{self.metric} (N = {self.n})"
