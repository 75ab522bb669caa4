"""The optimizers of the recipes; all keep the same three tensors for every parameter, so that checkpoints are alike.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest orthogonal
one, found by five Newton-Schulz steps, so that all directions move alike; scaled to the size of AdamW's steps (Liu et
al. 2025, arXiv 2502.16982, eq. 4). ``torch.optim.Muon`` takes matrices only; most here are convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedddpm_protocol.agreement.terms import MODERN, PAPER

Parameters = Mapping[str, nn.Parameter]
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")
MUON_RATE = 5.0  # times the learning rate of the rest, before the scale of the matrix
_MOMENTUM, _DECAY_OF_SQUARES, _WEIGHT_DECAY, _EPSILON = 0.9, 0.99, 0.01, 1e-8
_MATRIX_DECAY = 0.1  # a step, times Muon's own rate: without it matrices grow out of every band of honest weights
_MATCHED = 0.2  # root mean square of AdamW's steps
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_LEAST_SIDE = 16  # of a matrix that has directions to balance
_FIRST_AND_LAST = ("initial", "time", "label", "to_image")  # embeddings, first and last layer are AdamW's


def make_optimizer(parameters: Parameters, learning_rate: float, recipe: str = PAPER) -> torch.optim.Optimizer:
    """The optimizer of a recipe, with its state there from the start.

    Adam (Kingma 2014) with the fused step, which CPU and CUDA have (3.3 ms for 3 M weights against 11.9 foreach).
    """
    optimizer: torch.optim.Optimizer
    if recipe == MODERN:
        optimizer = MuonAdamW(parameters, learning_rate)
    else:
        optimizer = torch.optim.Adam(list(parameters.values()), lr=learning_rate, fused=True)
    # The state can so be spread over several processes like that of a checkpoint.
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            # The moments get the parameter's strides: the fused step walks through all three side by side.
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


class MuonAdamW(torch.optim.Optimizer):
    """Muon (weight decay 0.1) for matrices inside the network, AdamW (beta 0.9 and 0.99, decay 0.01) for all others."""

    def __init__(self, parameters: Parameters, learning_rate: float) -> None:
        super().__init__(list(parameters.values()), {"lr": learning_rate, "eps": _EPSILON})
        named = parameters.items()
        self._shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        for name, parameter in named:
            if is_matrix(name, parameter):
                self._shapes.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        matrices = {id(parameter) for group in self._shapes.values() for parameter in group}
        self._rest = [parameter for _, parameter in named if id(parameter) not in matrices]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Follow the gradients."""
        rate = float(self.param_groups[0]["lr"])
        for shape, matrices in self._shapes.items():
            self._move_matrices(shape, [one for one in matrices if one.grad is not None], rate)
        for parameter in self._rest:
            if parameter.grad is not None:
                self._move(parameter, parameter.grad, rate)

    def _move_matrices(self, shape: tuple[int, int], matrices: list[nn.Parameter], rate: float) -> None:
        """All matrices of one shape together, which costs little more than one."""
        if not matrices:
            return
        moved = []
        for parameter in matrices:
            state, gradient = self.state[parameter], parameter.grad
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
            ahead = torch.lerp(gradient, state["exp_avg"], _MOMENTUM)  # type: ignore[arg-type]  # Nesterov's look ahead
            moved.append(ahead.reshape(shape))
        step = MUON_RATE * rate * _MATCHED * math.sqrt(max(shape))
        for parameter, direction in zip(matrices, orthogonal(torch.stack(moved)), strict=True):
            parameter.mul_(1 - MUON_RATE * rate * _MATRIX_DECAY)
            parameter.add_(direction.reshape(parameter.shape), alpha=-step)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        state["step"] += 1
        steps = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - _DECAY_OF_SQUARES)
        spread = (state["exp_avg_sq"] / (1 - _DECAY_OF_SQUARES**steps)).sqrt_().add_(_EPSILON)
        if parameter.ndim > 1:
            parameter.mul_(1 - rate * _WEIGHT_DECAY)
        parameter.addcdiv_(state["exp_avg"], spread, value=-rate / (1 - _MOMENTUM**steps))


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves a parameter: a layer between features, wide enough both ways."""
    parts = name.split(".")
    if parameter.ndim < 2 or any(part in _FIRST_AND_LAST for part in parts):
        return False
    depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
    return not depthwise and min(len(parameter), parameter[0].numel()) >= _LEAST_SIDE


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal matrix nearest to each of ``matrices`` [n, rows, columns], roughly: singular values near 1."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = x.mT if tall else x
    return found
