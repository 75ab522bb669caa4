"""Images from wherever they are to one tensor in memory."""

from fedddpm.data.image_set import ImageSet, split_holdout, to_floats, to_uint8
from fedddpm.data.opening import Split, open_images

__all__ = ["ImageSet", "Split", "open_images", "split_holdout", "to_floats", "to_uint8"]
