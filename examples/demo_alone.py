"""What one institution would have by itself: the network, first weights, recipe and number of steps of the demo's run.

    python examples/demo_alone.py --data hospital-a.npz --theta0 theta0.safetensors --charter charter.json \\
        --root-key HEX --images 1000 --out alone-hospital-a

Writes alone-hospital-a.safetensors and alone-hospital-a.npz, images that the network drew. The demo runs it for each
institution, to show why one federates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from fedddpm.data import open_images, split_holdout
from fedddpm.generation.networks import load_network
from fedddpm.generation.sampling import sample_images
from fedddpm.model.model_files import save_model
from fedddpm.model.unet import UNet
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.charter import Charter, open_charter
from fedddpm_protocol.wire.messages import SignedDocument

HELD_OUT = 0.1  # of the images, as an institution holds them out
CPU = torch.device("cpu")


def train_alone(data: Path, theta_0: Path, charter: Charter) -> UNet:
    """Train from ``theta_0`` for as many epochs as the run has in all its rounds, in one go."""
    images, _ = split_holdout(open_images(data), HELD_OUT, 0)
    model = load_network(theta_0, "model")
    training = charter.training
    settings = TrainSettings(
        epochs=charter.rounds * training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        recipe=training.recipe,
        flips=True,
    )
    total = settings.epochs
    Trainer(model, images, CPU, settings, seed=0).train(
        on_epoch=lambda done: print(f"epoch {done}/{total}", flush=True)
    )
    return model


def draw(model: UNet, count: int) -> torch.Tensor:
    """``count`` images of a network, all networks from the same noise."""
    return sample_images(model, count, sampler="dpm", seed=0, device=CPU)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "theta0", "charter", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--root-key", required=True, help="the federation root's public key (hex)")
    parser.add_argument("--images", type=int, default=1000, help="to draw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document = SignedDocument.model_validate_json(options.charter.read_text())
    model = train_alone(options.data, options.theta0, open_charter(document, bytes.fromhex(options.root_key)))
    save_model(options.out.with_suffix(".safetensors"), model)
    np.savez_compressed(options.out.with_suffix(".npz"), images=draw(model, options.images).numpy()[:, 0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
