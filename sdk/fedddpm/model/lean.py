"""The network "lean": the best images for a second of CPU at 28 to 64 pixels, in three whole parts.

Four neighbouring pixels become one place of four times the channels (pixel-unshuffle, Shi et al. 2016, arXiv
1609.05158), so that nothing is computed at full resolution; residual blocks normalise before each convolution, and time
scales and shifts their features (FiLM, Perez et al. 2017, arXiv 1709.07871; Dhariwal and Nichol 2021, arXiv
2105.05233).
Attention between all places is in the bottleneck only. With widths w1, w2 (``base_dim`` times the two multipliers):

    x [B, C, H, W] -> encoder -> h [B, w2, H/4, W/4], skips, time -> bottleneck -> h -> decoder -> [B, C, H, W]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FREQUENCIES = 32  # of the sinusoids that a noise level becomes
_HEADS = 4
_GROUP = 4  # channels of a group at least
_GROUPS = 8
SHRINKS = 4  # the image's sides, down to the lowest resolution


class FilmBlock(nn.Module):
    """x [B, width_in, H, W], time [B, time_width] -> [B, width_out, H, W]: two convolutions and a shortcut."""

    def __init__(self, width_in: int, width_out: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width_in), nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(width_out), nn.Conv2d(width_out, width_out, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * width_out)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the block."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(h * (1 + scale) + shift))
        return out


class PixelAttention(nn.Module):
    """Residual, pre-norm attention between all places: x [B, width, H, W] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        batch, width, rows, columns = x.shape
        parted = self.qkv(self.norm(x)).reshape(batch, 3, _HEADS, width // _HEADS, rows * columns)
        q, k, v = parted.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, width, rows, columns)
        out: Tensor = x + self.project(h)
        return out


class NoiseEmbedding(nn.Module):
    """Noise level -> features: sinusoids, linear, SiLU, linear, SiLU."""

    def __init__(self, time_width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * _FREQUENCIES, time_width), nn.SiLU(), nn.Linear(time_width, time_width))

    def forward(self, t: Tensor) -> Tensor:
        """T [B], whole or not -> [B, time_width]."""
        exponents = torch.arange(_FREQUENCIES, device=t.device, dtype=torch.float32) / (_FREQUENCIES - 1)
        angles = t[:, None] * torch.exp(-math.log(10_000) * exponents)
        out: Tensor = self.net(torch.cat((angles.sin(), angles.cos()), dim=1))
        return out


class LeanEncoder(nn.Module):
    """Unshuffled image, embeddings of noise level and label, a block at each of two resolutions."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, int], time_width: int) -> None:
        super().__init__()
        first, second = widths
        self.initial = nn.Conv2d(4 * channels, first, 3, padding=1)
        self.time = NoiseEmbedding(time_width)
        self.label = nn.Embedding(classes + 1, time_width) if classes else None  # the last row: no label
        self.block1 = FilmBlock(first, first, time_width)
        self.downsample = nn.Conv2d(first, second, 2, stride=2)
        self.block2 = FilmBlock(second, second, time_width)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """x [B, C, H, W], t, labels [B] -> (h [B, w2, H/4, W/4], [skip of w1, skip of w2], time [B, time_width])."""
        time = self.time(t)
        if self.label is not None:
            untold = torch.full(t.shape, self.label.num_embeddings - 1, dtype=torch.int64, device=t.device)
            time = time + self.label(untold if labels is None else labels)
        time = F.silu(time)
        wide = self.block1(self.initial(F.pixel_unshuffle(x, 2)), time)
        narrow = self.block2(self.downsample(wide), time)
        return narrow, [wide, narrow], time


class LeanBottleneck(nn.Module):
    """Block, attention between all places, block."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.block1 = FilmBlock(width, width, time_width)
        self.attention = PixelAttention(width)
        self.block2 = FilmBlock(width, width, time_width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """H [B, w2, H/4, W/4] -> the same shape."""
        out: Tensor = self.block2(self.attention(self.block1(h, time)), time)
        return out


class LeanDecoder(nn.Module):
    """A block on each skip, back to four pixels a place."""

    def __init__(self, channels: int, widths: tuple[int, int], time_width: int) -> None:
        super().__init__()
        first, second = widths
        self.block2 = FilmBlock(2 * second, second, time_width)
        self.upsample = nn.ConvTranspose2d(second, first, 2, stride=2)
        self.block1 = FilmBlock(2 * first, first, time_width)
        self.norm = _norm(first)
        self.to_image = nn.Conv2d(first, 4 * channels, 3, padding=1)

    def forward(self, h: Tensor, skips: Sequence[Tensor], time: Tensor) -> Tensor:
        """H [B, w2, H/4, W/4] and the encoder's skips -> [B, C, H, W]."""
        wide, narrow = skips
        h = self.upsample(self.block2(torch.cat((h, narrow), dim=1), time))
        h = self.block1(torch.cat((h, wide), dim=1), time)
        return F.pixel_shuffle(self.to_image(F.silu(self.norm(h))), 2)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(_GROUPS, width // _GROUP), width)
