"""One gradient step: noise a batch, predict what the network is to predict, follow the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedddpm.compute.acceleration import Forward, arithmetic, compiled, resolve_compile, resolve_precision
from fedddpm.model.diffusion import Diffusion, hide_labels
from fedddpm.model.process import process_of
from fedddpm.model.unet import UNet
from fedddpm.training.batches import Batch
from fedddpm.training.ranks import RankShare
from fedddpm.training.settings import TrainSettings
from fedddpm_protocol.agreement.terms import RECIPES


class TrainStep:
    """Steps of a training of ``model``, which is on ``device``; ``whole`` is the size of every batch but the last.

    ``steps`` of the training decide whether compiling is worth it.
    """

    def __init__(
        self, model: UNet, device: torch.device, settings: TrainSettings, whole: int, steps: int, share: RankShare
    ) -> None:
        self._model, self._device, self._settings, self._whole, self._share = model, device, settings, whole, share
        self._process = process_of(model.architecture)
        self._clip = RECIPES[settings.recipe].gradient_clip
        self.precision = resolve_precision(settings.precision, device)
        # Several ranks compile on request only: CUDA graphs around an exchange of gradients are their own risk.
        wanted = False if settings.compile is None and share.world > 1 else settings.compile
        self.compiles = resolve_compile(wanted, device, steps)
        self._plain: Forward = model  # for a last batch of another size, which is not worth compiling for
        self._fast: Forward = model
        self._ready = False

    def prepare(self) -> None:
        """Before the first step: average gradients over the ranks, and compile if that is wanted.

        Raises:
            ConfigError: the network was to be compiled, and cannot be.
        """
        if self._ready:
            return
        self._plain = self._fast = self._share.wrap(self._model)
        if self.compiles:
            required = self._settings.compile is True
            self._fast = compiled(self._plain, self._device, self._try_out, required=required)
        self._ready = True

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        generator: torch.Generator,
        on_gradient: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Change the weights; returns the mean loss of the whole batch, on the device.

        ``generator`` decides, before all, which images are mirrored where they are; then timesteps or noise levels,
        noise and, drawn last, which labels are hidden. All ranks draw the same for all rows, then each computes its
        own. ``on_gradient`` is called between gradient and step, on every rank.
        """
        x_0 = batch.x_0 if not self._settings.flips else mirrored(batch.x_0, generator)
        x_t, t, target = self._process.draw(x_0, generator)
        inputs = [x_t, t]
        if batch.labels is not None:
            null = self._model.architecture.classes
            inputs.append(hide_labels(batch.labels, null, self._settings.label_dropout, generator))
        optimizer.zero_grad(set_to_none=True)
        answer = self._forward(*(self._share.slice(rows) for rows in inputs), whole=len(x_t) == self._whole)
        loss_sum = self._process.error(answer.float(), self._share.slice(target), "sum")
        loss = self._share.scaled(loss_sum, target.numel())
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        if self._clip:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        on_gradient()  # as the optimizer sees it
        optimizer.step()
        return self._share.total(loss) / self._share.world

    def _forward(self, *inputs: Tensor, whole: bool) -> Tensor:
        if self._fast is not self._plain:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch
        with arithmetic(self.precision, self._device):
            return (self._fast if whole else self._plain)(*inputs)

    def _try_out(self, network: Forward) -> None:
        """Run ``network`` forwards and backwards once on a batch of zeros; no weight changes."""
        a = self._model.architecture
        x_t = torch.zeros((self._whole, a.channels, a.image_size, a.image_size), device=self._device)
        zeros = torch.zeros(self._whole, dtype=torch.int64, device=self._device)
        levels = zeros if isinstance(self._process, Diffusion) else zeros.float()
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        inputs = (x_t, levels, zeros) if a.classes else (x_t, levels)
        with arithmetic(self.precision, self._device):
            eps = network(*(self._share.slice(rows) for rows in inputs))
        eps.float().sum().backward()  # type: ignore[no-untyped-call]  # torch
        self._model.zero_grad(set_to_none=True)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W], each turned left to right with probability 1/2."""
    turned = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(turned[:, None, None, None], images.flip(3), images)
