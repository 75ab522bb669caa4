"""One record of an institution: settings, identity, images, device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedddpm.config import ClientConfig
from fedddpm.data.image_set import ImageSet
from fedddpm.identity import Identity
from fedddpm.training.ranks import ALONE, RankShare


@dataclass(frozen=True)
class Institution:
    """What this institution brings: who it is, what it trains on, where, and by which settings."""

    config: ClientConfig
    identity: Identity
    member_id: str
    root_public_key: bytes
    images: tuple[ImageSet, ImageSet]  # for training, held out
    device: torch.device
    share: RankShare = ALONE  # of the training, where several processes train together
