"""What everybody is told at a start of the images' grey values, as they are trained on."""

from dataclasses import dataclass

import numpy as np

from fedddpm.data.image_set import ImageSet, spread

_NARROW = 32  # of 256 greys: what is left of 13 bits in a 16-bit file
_LOOKED_AT = 1000  # images, evenly spread, for what most pixels hold
_AS_STORED = "8 bits or fewer, as they are"


@dataclass(frozen=True)
class GreySummary:
    """The range of the grey values (0..255) of ``count`` images.

    ``constant``: images of one value throughout, ``narrow``: of fewer than 32 values between smallest and largest,
    these included. ``most``: what 98 % of all pixels lie in.
    """

    count: int
    smallest: int
    largest: int
    mean: float
    constant: int
    narrow: int
    most: tuple[int, int]
    scaling: str

    @property
    def sentence(self) -> str:
        """One line for everybody."""
        constant = f"{self.constant} of {self.count}" if self.constant else "no"
        reach = f"grey values {self.smallest} to {self.largest} of 0..255, mean {self.mean:.1f}"
        return f"{reach}, {constant} images constant ({self.scaling})"

    @property
    def fields(self) -> dict[str, object]:
        """The same for a log that machines read."""
        return {
            "grey_min": self.smallest,
            "grey_max": self.largest,
            "grey_mean": round(self.mean, 2),
            "constant": self.constant,
            "scaling": self.scaling,
        }

    @property
    def concern(self) -> str:
        """What makes these images doubtful; empty if nothing does."""
        advice = "look at some of them, and at what wrote them, before the network learns that"
        if 2 * self.constant > self.count:
            return f"{self.constant} of {self.count} images are constant, one grey value throughout: {advice}"
        if 2 * self.narrow > self.count:
            return (
                f"{self.narrow} of {self.count} images are nearly constant, with less than {_NARROW} of 256 grey values"
                f" between their darkest and their brightest pixel: {advice}"
            )
        if self.most[1] - self.most[0] < _NARROW:
            return f"98 % of all pixels lie between {self.most[0]} and {self.most[1]} of 0..255: {advice}"
        return ""


def grey_line(images: ImageSet) -> GreySummary:
    """Look at all ``images``: about a second for a gigabyte."""
    darkest, brightest = images.images.flatten(2).amin(2), images.images.flatten(2).amax(2)  # [N, C]
    ranges = (brightest.int() - darkest.int()).amax(1)
    return GreySummary(
        count=len(images),
        smallest=int(darkest.min()),
        largest=int(brightest.max()),
        mean=float(images.images.numpy().mean()),
        constant=int((ranges == 0).sum()),
        narrow=int((ranges < _NARROW).sum()),
        most=_most(images),
        scaling=images.scaling or _AS_STORED,
    )


def _most(images: ImageSet) -> tuple[int, int]:
    """Between which values 98 % of the pixels lie."""
    some = images.images[spread(len(images), _LOOKED_AT)].numpy()
    counts = sum(np.bincount(one.reshape(-1), minlength=256) for one in some)
    share = np.cumsum(counts) / some.size
    return int(np.searchsorted(share, 0.01, side="right")), int(np.searchsorted(share, 0.99))
