"""The UNet that predicts the noise of a noisy image, in three child modules: encoder, bottleneck, decoder.

The network is the one of FedDiffuse (arXiv 2406.12575), itself "The Annotated Diffusion Model" (Rogge and Rasul 2022)
with ConvNeXt blocks (Liu et al. 2022, arXiv 2201.03545), after Ho et al. 2020 (arXiv 2006.11239). What an institution
shares is always a set of these children, so every parameter sits below exactly one of them.

    x_t [B, C, H, W] -> encoder -> (h, skips, time) -> bottleneck -> h -> decoder -> eps [B, C, H, W]

Presets: "paper" is faithful; "fast" has ResNet blocks and no linear attention (a third of the time for a step);
"tiny" has 16 channels and no attention at all, for tests and demonstrations; "lean" is another network (see ``lean``).
What an answer means is the architecture's ``prediction``: the noise, or what EDM's preconditioning leaves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from fedddpm.errors import ModelError
from fedddpm.model.attention import Attention, LinearAttention
from fedddpm.model.lean import SHRINKS, LeanBottleneck, LeanDecoder, LeanEncoder
from fedddpm_protocol.agreement.model_layout import NOISE, PRECONDITIONED, Architecture

MULTIPLIERS, LEAN_MULTIPLIERS = (1, 2, 4), (1, 2)
GROUPS = 4  # for the GroupNorm of ResNet blocks; divides the width of every level


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution plus time, then two 3x3 convolutions through twice the width, plus a shortcut.

    Liu et al. 2022, as in the annotated model: x [B, width_in, H, W], time [B, time_width] -> [B, width_out, H, W].
    ``time_width=None`` builds a block that ignores time.
    """

    def __init__(self, width_in: int, width_out: int, time_width: int | None) -> None:
        super().__init__()
        self.time = None if time_width is None else nn.Sequential(nn.GELU(), nn.Linear(time_width, width_in))
        self.depthwise = nn.Conv2d(width_in, width_in, 7, padding=3, groups=width_in)
        self.mix = nn.Sequential(
            nn.GroupNorm(1, width_in),
            nn.Conv2d(width_in, 2 * width_out, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, 2 * width_out),
            nn.Conv2d(2 * width_out, width_out, 3, padding=1),
        )
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the block."""
        h: Tensor = self.depthwise(x)
        if self.time is not None:
            h = h + self.time(time)[:, :, None, None]
        out: Tensor = self.mix(h) + self.shortcut(x)
        return out


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU, time added between them, plus a shortcut (He 2015, Ho 2020).

    x [B, width_in, H, W], time [B, time_width] -> [B, width_out, H, W].
    """

    def __init__(self, width_in: int, width_out: int, time_width: int | None) -> None:
        super().__init__()
        self.time = None if time_width is None else nn.Sequential(nn.SiLU(), nn.Linear(time_width, width_out))
        self.first = nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), nn.GroupNorm(GROUPS, width_out))
        self.second = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
            nn.GroupNorm(GROUPS, width_out),
            nn.SiLU(),
        )
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the block."""
        h: Tensor = self.first(x)
        if self.time is not None:
            h = h + self.time(time)[:, :, None, None]
        out: Tensor = self.second(h) + self.shortcut(x)
        return out


class TimeEmbedding(nn.Module):
    """Timestep -> features: sinusoids (Vaswani 2017, section 3.5), linear, GELU, linear."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.pairs = width // 2
        self.net = nn.Sequential(nn.Linear(width, time_width), nn.GELU(), nn.Linear(time_width, time_width))

    def forward(self, t: Tensor) -> Tensor:
        """T [B] int64 -> [B, time_width]."""
        exponents = torch.arange(self.pairs, device=t.device, dtype=torch.float32) / (self.pairs - 1)
        angles = t[:, None] * torch.exp(-math.log(10_000) * exponents)  # [B, half]
        out: Tensor = self.net(torch.cat((angles.sin(), angles.cos()), dim=1))
        return out


@dataclass(frozen=True)
class _Plan:
    """What an architecture means in modules: the block, the two attentions and the widths of the levels."""

    channels: int
    classes: int
    base: int
    widths: tuple[int, ...]  # of the initial convolution, then of each level
    block: Callable[[int, int, int | None], nn.Module]
    level_attention: Callable[[int], nn.Module]
    middle_attention: Callable[[int], nn.Module]

    @property
    def time_width(self) -> int:
        return 4 * self.base


class DownLevel(nn.Module):
    """Two blocks and attention at one resolution; then half the resolution, except at the last level."""

    def __init__(self, plan: _Plan, width_in: int, width_out: int, *, last: bool) -> None:
        super().__init__()
        self.block1 = plan.block(width_in, width_out, plan.time_width)
        self.block2 = plan.block(width_out, width_out, plan.time_width)
        self.attention = plan.level_attention(width_out)
        self.downsample = nn.Identity() if last else nn.Conv2d(width_out, width_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, width_in, H, W] -> (next level's input [B, width_out, H/2, W/2], skip [B, width_out, H, W])."""
        skip = self.attention(self.block2(self.block1(x, time), time))
        return self.downsample(skip), skip


class UpLevel(nn.Module):
    """Concatenated skip, two blocks and attention, then twice the resolution."""

    def __init__(self, plan: _Plan, width_in: int, width_out: int) -> None:
        super().__init__()
        self.block1 = plan.block(2 * width_in, width_out, plan.time_width)
        self.block2 = plan.block(width_out, width_out, plan.time_width)
        self.attention = plan.level_attention(width_out)
        self.upsample = nn.ConvTranspose2d(width_out, width_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        """x and skip [B, width_in, H, W] -> [B, width_out, 2H, 2W]."""
        h = self.block1(torch.cat((x, skip), dim=1), time)
        out: Tensor = self.upsample(self.attention(self.block2(h, time)))
        return out


class Encoder(nn.Module):
    """Initial 7x7 convolution, embeddings of time and label, and down levels.

    With classes, ``label`` is a table of ``classes + 1`` rows that are added to the time embedding (as Nichol and
    Dhariwal 2021, arXiv 2102.09672, do); its last row stands for "no label". Without classes there is no table.
    """

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.initial = nn.Conv2d(plan.channels, plan.widths[0], 7, padding=3)
        self.time = TimeEmbedding(plan.base, plan.time_width)
        self.label = nn.Embedding(plan.classes + 1, plan.time_width) if plan.classes else None
        pairs = list(pairwise(plan.widths))
        self.levels = nn.ModuleList(DownLevel(plan, a, b, last=(a, b) == pairs[-1]) for a, b in pairs)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """x_t [B, C, H, W], t, labels [B] -> (h [B, widths[-1], H/4, W/4], one skip a level, time [B, time_width])."""
        h, time, skips = self.initial(x_t), self.time(t), []
        if self.label is not None:
            time = time + self.label(torch.full_like(t, self.label.num_embeddings - 1) if labels is None else labels)
        for level in self.levels:
            h, skip = level(h, time)
            skips.append(skip)
        return h, skips, time


class Bottleneck(nn.Module):
    """Block, attention between all pixels, block, at the lowest resolution."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        width = plan.widths[-1]
        self.block1 = plan.block(width, width, plan.time_width)
        self.attention = plan.middle_attention(width)
        self.block2 = plan.block(width, width, plan.time_width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """H [B, width, H/4, W/4] -> the same shape."""
        out: Tensor = self.block2(self.attention(self.block1(h, time)), time)
        return out


class Decoder(nn.Module):
    """Up levels, a last block without time, and a 1x1 convolution to the image's channels.

    There is one up level less than there are down levels: the skip of the full resolution stays unused, as in the
    annotated model, and the published parameter counts depend on it.
    """

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.levels = nn.ModuleList(UpLevel(plan, b, a) for a, b in reversed(list(pairwise(plan.widths[1:]))))
        self.last_block = plan.block(plan.widths[1], plan.widths[1], None)
        self.to_image = nn.Conv2d(plan.widths[1], plan.channels, 1)

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """H [B, widths[-1], H/4, W/4] and the encoder's skips -> eps [B, C, H, W]."""
        for level, skip in zip(self.levels, reversed(skips), strict=False):
            h = level(h, skip, time)
        out: Tensor = self.to_image(self.last_block(h, time))
        return out


class UNet(nn.Module):
    """Encoder, bottleneck and decoder in a row.

    ``UNet(28, 1)`` has 1,280,642 + 999,376 + 716,297 = 2,996,315 parameters, the published count for Fashion-MNIST.
    ``base_dim`` is the width of the first level, by default the image's size; for "fast" that is rounded up to a
    multiple of 16, which vector units like; for "tiny" it is 16. With ``classes`` above zero the network can be told
    what an image shows; the published counts are those of ``classes=0``.

    Raises:
        ModelError: the sizes do not fit each other.
    """

    def __init__(
        self,
        image_size: int = 28,
        channels: int = 1,
        preset: str = "paper",
        base_dim: int | None = None,
        multipliers: tuple[int, ...] | None = None,
        classes: int = 0,
        prediction: str | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture_of(image_size, channels, preset, base_dim, multipliers, classes, prediction)
        self.encoder: Encoder | LeanEncoder
        self.bottleneck: Bottleneck | LeanBottleneck
        self.decoder: Decoder | LeanDecoder
        if preset == "lean":
            self.encoder, self.bottleneck, self.decoder = _lean(self.architecture)
            return
        plan = _plan(self.architecture)
        self.encoder = Encoder(plan)
        self.bottleneck = Bottleneck(plan)
        self.decoder = Decoder(plan)

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> Self:
        """Build the network that ``architecture`` names."""
        a = architecture
        return cls(a.image_size, a.channels, a.preset, a.base_dim, a.multipliers, a.classes, a.prediction)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise in x_t [B, C, H, W] at timesteps t [B] -> eps [B, C, H, W], or F of a preconditioned one.

        ``labels`` [B] int64 count from 0; the value ``classes`` stands for "no label", and so does None for all images.

        Raises:
            ModelError: labels for a network without classes.
        """
        if labels is not None and self.encoder.label is None:
            raise ModelError("this network has no classes and cannot be told labels", "Leave the labels out")
        h, skips, time = self.encoder(x_t, t, labels)
        out: Tensor = self.decoder(self.bottleneck(h, time), skips, time)
        return out


def architecture_of(
    image_size: int = 28,
    channels: int = 1,
    preset: str = "paper",
    base_dim: int | None = None,
    multipliers: tuple[int, ...] | None = None,
    classes: int = 0,
    prediction: str | None = None,
) -> Architecture:
    """The architecture of a :class:`UNet` with these arguments; ModelError for a value outside its range.

    What is not given is as the preset has it; "lean" is preconditioned, the others predict the noise.
    """
    defaults = {"fast": -(-image_size // 16) * 16, "tiny": 16, "lean": 32}
    base = base_dim if base_dim is not None else defaults.get(preset, image_size)
    widths = multipliers if multipliers is not None else LEAN_MULTIPLIERS if preset == "lean" else MULTIPLIERS
    meant = prediction if prediction is not None else PRECONDITIONED if preset == "lean" else NOISE
    try:
        return Architecture(preset, image_size, channels, base, tuple(widths), classes, meant)
    except ValueError as error:
        raise ModelError(str(error), "Choose another size, number of channels, classes or preset") from error


def _lean(architecture: Architecture) -> tuple[LeanEncoder, LeanBottleneck, LeanDecoder]:
    """The parts of a "lean" network; ModelError if its sizes do not fit each other."""
    a = architecture
    if len(a.multipliers) != len(LEAN_MULTIPLIERS) or min(a.multipliers) < 1:
        raise ModelError(f"the multipliers {a.multipliers} are no two positive ones", "Use for instance (1, 2)")
    if a.image_size % SHRINKS:
        near = max(8, a.image_size // SHRINKS * SHRINKS)
        raise ModelError(
            f"the image size {a.image_size} cannot be halved twice", f"Use a multiple of {SHRINKS}, for instance {near}"
        )
    if a.base_dim < 4 * GROUPS or a.base_dim % 32:
        raise ModelError(f"the base width {a.base_dim} is not a multiple of 32", "Use for instance 32 or 64")
    first, second = (a.base_dim * multiplier for multiplier in a.multipliers)
    time_width = 2 * first
    return (
        LeanEncoder(a.channels, a.classes, (first, second), time_width),
        LeanBottleneck(second, time_width),
        LeanDecoder(a.channels, (first, second), time_width),
    )


def _plan(architecture: Architecture) -> _Plan:
    """Turn an architecture into blocks and widths; ModelError if the sizes do not fit each other."""
    a = architecture
    if not a.multipliers or min(a.multipliers) < 1:
        raise ModelError(f"the multipliers {a.multipliers} are not positive", "Use for instance (1, 2, 4)")
    factor = 2 ** (len(a.multipliers) - 1)
    if a.image_size % factor:
        raise ModelError(
            f"the image size {a.image_size} cannot be halved {len(a.multipliers) - 1} times",
            f"Use a multiple of {factor}, for instance {max(8, a.image_size // factor * factor)}",
        )
    if a.base_dim < GROUPS or a.base_dim % GROUPS:
        raise ModelError(f"the base width {a.base_dim} is not a multiple of {GROUPS}", "Use for instance 16, 28 or 32")
    widths = (a.base_dim // 3 * 2, *(a.base_dim * m for m in a.multipliers))
    nothing: Callable[[int], nn.Module] = lambda width: nn.Identity()  # noqa: E731  # a value of the table below
    block, level, middle = {
        "paper": (ConvNeXtBlock, LinearAttention, Attention),
        "fast": (ResNetBlock, nothing, Attention),
        "tiny": (ResNetBlock, nothing, nothing),
    }[a.preset]
    return _Plan(a.channels, a.classes, a.base_dim, widths, block, level, middle)
