"""A network for somebody else's program: one safetensors file that says in its metadata all that sampling needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from fedddpm.errors import ConfigError, ModelError
from fedddpm.model.diffusion import BETA_FIRST, BETA_LAST, Diffusion
from fedddpm.model.model_files import save_model
from fedddpm.model.preconditioning import RHO, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import NOISE, PRECONDITIONED

Format = Literal["plain", "diffusers"]

SCHEDULE_KEY, LABELS_KEY = "fedddpm.schedule", "fedddpm.labels"
_PLAIN = "Use the format plain: the metadata of the file say how the weights and the schedule are to be read"
RANGE_KEY, WEIGHTS_KEY = "fedddpm.image_range", "fedddpm.weights"


def export_model(path: Path, model: UNet, format_: Format = "plain", weights: str = "model") -> None:
    """Write ``model`` to a new file, atomically; ``weights`` says in it what they are, "model" or "ema".

    The file is a model file of this package as well. Its metadata are JSON: architecture and manifest (see
    :func:`~fedddpm.model.model_files.save_model`), the schedule under the names that diffusers'
    ``scheduler_config.json`` has, the range of the pixels, and for a conditional network what labels there are.

    Raises:
        ConfigError: the file exists, or there is no such format.
        ModelError: the network cannot be written in this format, or a weight is no finite number.
        CheckpointError: the file cannot be written.
    """
    if format_ not in get_args(Format):
        raise ConfigError(f"there is no format {format_!r}", f"Use one of {', '.join(get_args(Format))}")
    if format_ == "diffusers":
        raise _no_diffusers(model.architecture.preset)
    if path.exists():
        raise ConfigError(f"{path} exists and is not overwritten", "Choose another --out, or remove it first")
    notes = {
        SCHEDULE_KEY: schedule_json(model.architecture.prediction),
        RANGE_KEY: "[-1.0, 1.0]",
        WEIGHTS_KEY: weights,
        "format": "pt",
    }
    if model.architecture.classes:
        labels = {"classes": model.architecture.classes, "no_label": model.architecture.classes}
        notes[LABELS_KEY] = json.dumps(labels)
    save_model(path, model, notes)


def schedule_json(prediction: str = NOISE) -> str:
    """The schedule, for instance for ``DDPMScheduler.from_config(json.loads(...))`` of diffusers.

    Of a preconditioned network it says what its factors and noise levels follow from (see ``model.preconditioning``).
    """
    if prediction == PRECONDITIONED:
        return json.dumps(
            {
                "prediction_type": "edm",
                "sigma_data": SIGMA_DATA,
                "sigma_min": SIGMA_MIN,
                "sigma_max": SIGMA_MAX,
                "rho": RHO,
                "noise_level": "1000 * 2 / pi * atan(sigma)",
                "clip_sample": True,
                "clip_sample_range": 1.0,
            }
        )
    return json.dumps(
        {
            "num_train_timesteps": Diffusion().timesteps,
            "beta_schedule": "linear",
            "beta_start": BETA_FIRST,
            "beta_end": BETA_LAST,
            "prediction_type": "epsilon",
            "variance_type": "fixed_small",
            "clip_sample": True,
            "clip_sample_range": 1.0,
        }
    )


def _no_diffusers(preset: str) -> ModelError:
    if preset == "lean":
        return ModelError(
            "the network 'lean' is no UNet2DModel of diffusers, whatever its settings: that one begins at full "
            "resolution (here: four pixels in one place) and adds time to its features (here: time scales them, too)",
            _PLAIN,
        )
    blocks = "ConvNeXt blocks" if preset == "paper" else "blocks that normalise after each convolution"
    return ModelError(
        f"the network {preset!r} is no UNet2DModel of diffusers, whatever its settings: that one has ResNet blocks "
        f"that normalise before each convolution (here: {blocks}), begins and ends with 3x3 convolutions (here: 7x7 "
        "and 1x1) and must have as many levels up as down (here: one less), so its layers could not hold these weights",
        _PLAIN,
    )
