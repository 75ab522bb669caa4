"""Which process a network belongs to: noise by timestep, or by noise level."""

from __future__ import annotations

from fedddpm.model.diffusion import Diffusion
from fedddpm.model.preconditioning import Preconditioned
from fedddpm_protocol.agreement.model_layout import PRECONDITIONED, Architecture

Process = Diffusion | Preconditioned


def process_of(architecture: Architecture) -> Process:
    """The process that networks of this architecture are trained on and drawn from."""
    return Preconditioned() if architecture.prediction == PRECONDITIONED else Diffusion()
