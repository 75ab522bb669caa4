"""The two attentions of the network, each a residual around a norm: linear cost for large maps, full for the smallest.

Both have ``HEADS`` heads of ``HEAD_WIDTH`` features: q, k and v are 1x1 convolutions without a bias, and so is the
projection back, with one. The convolutions hold the weights; where that is faster, they are applied as matrices.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
HEAD_WIDTH = 32
_INNER = HEADS * HEAD_WIDTH


class LinearAttention(nn.Module):
    """Residual, pre-norm attention of linear cost in the number of pixels (Shen et al. 2018, arXiv 1812.01243).

    With q a softmax over features and k one over pixels, a head gives project((k v^T)^T q / sqrt(HEAD_WIDTH)).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * _INNER, 1, bias=False)
        self.project = nn.Sequential(nn.Conv2d(_INNER, width, 1), nn.GroupNorm(1, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, H, W] -> x + attention of the same shape."""
        _, width, rows, columns = x.shape
        normed = self.norm(x)
        h = self.project[0](self.heads(normed)) if width >= rows * columns else self.folded(normed)
        out: Tensor = x + self.project[1](h)
        return out

    def heads(self, x: Tensor) -> Tensor:
        """The formula as it is written: x [B, width, H, W] -> all heads' features [B, HEADS HEAD_WIDTH, H, W]."""
        batch, _, rows, columns = x.shape
        q, k, v = self.qkv(x).reshape(batch, 3, HEADS, HEAD_WIDTH, rows * columns).unbind(1)
        q = q.softmax(dim=-2) / math.sqrt(HEAD_WIDTH)  # over the features      [B, HEADS, HEAD_WIDTH, H W]
        k = k.softmax(dim=-1)  # over the pixels
        context = k @ v.transpose(-1, -2)  # [B, HEADS, HEAD_WIDTH (k), HEAD_WIDTH (v)]
        h = context.transpose(-1, -2) @ q  # [B, HEADS, HEAD_WIDTH, H W]
        out: Tensor = h.reshape(batch, _INNER, rows, columns)
        return out

    def folded(self, x: Tensor) -> Tensor:
        """The same, projected, with v and the heads' features never made: x and result [B, width, H, W].

        Both are as large as q, for every pixel, and both are linear: k v^T = (k x^T) Wv^T, and the projection goes
        into the context. What is left for v are matrices of HEAD_WIDTH by width, so it pays where width < H W.
        """
        batch, width, rows, columns = x.shape
        pixels = x.flatten(2).transpose(1, 2)  # [B, H W, width]; a view where x is channels_last
        to_q, to_k, to_v = self.qkv.weight.view(3, _INNER, width)
        project: nn.Conv2d = self.project[0]  # type: ignore[assignment]  # Sequential does not know its types
        back = project.weight.view(width, HEADS, HEAD_WIDTH).permute(1, 2, 0) / math.sqrt(HEAD_WIDTH)
        q = F.linear(pixels, to_q).view(batch, -1, HEADS, HEAD_WIDTH).softmax(dim=-1).flatten(2)  # [B, H W, _INNER]
        k = torch.bmm(to_k.expand(batch, -1, -1), pixels.transpose(1, 2)).softmax(dim=-1)  # [B, _INNER, H W]
        seen = torch.bmm(k, pixels)  # what each feature of k looks at [B, _INNER, width]
        seen = seen.view(batch, HEADS, HEAD_WIDTH, width).transpose(0, 1).reshape(HEADS, batch * HEAD_WIDTH, width)
        context = seen @ to_v.view(HEADS, HEAD_WIDTH, width).transpose(1, 2) @ back  # [HEADS, B HEAD_WIDTH, width]
        context = context.view(HEADS, batch, HEAD_WIDTH, width).transpose(0, 1).reshape(batch, _INNER, width)
        h = torch.baddbmm(project.bias, q, context)  # type: ignore[arg-type]  # made with a bias  [B, H W, width]
        return h.transpose(1, 2).view(batch, width, rows, columns)


class Attention(nn.Module):
    """Residual, pre-norm attention between all pixels (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * _INNER, 1, bias=False)
        self.project = nn.Conv2d(_INNER, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, H, W] -> x + attention of the same shape."""
        batch, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, HEADS, HEAD_WIDTH, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, HEADS, H W, HEAD_WIDTH]
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(-1, -2).reshape(batch, _INNER, height, width)
        out: Tensor = x + self.project(h)
        return out
