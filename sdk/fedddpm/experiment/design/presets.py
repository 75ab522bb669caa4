"""Ready-made studies by name."""

from __future__ import annotations

from collections.abc import Mapping

from fedddpm.errors import ConfigError

_PAPER = {
    "networks": ("paper",),
    "weighting": "samples",  # as the paper's FedAvg
    "methods": ("FULL", "USPLIT", "ULATDEC", "UDEC", "centralised"),
    "epochs": 5,
    "learning_rate": 1e-4,
    "ema_decay": 0.0,
    "seeds": (0, 1, 2),
    "centralised_epochs": (15,),
    "sampler": "ancestral",
    "final_samples": (1000, 5000),
    "client_samples": 1000,
    "inception": True,
    "saving": ("rescaled", "clipped"),
}

_SMALL = {
    "data": "fashion-mnist",
    "weighting": "samples",
    "institutions": (6,),
    "splits": ("label-skew",),
    "subset": 3000,
    "epochs": 1,
    "batch_size": 16,
    "loss_images": 256,
    "sampler": "dpm",
    "sampler_steps": 15,
    "final_samples": (960,),
    "client_samples": 240,
    "classifier_steps": 400,
}

_CPU_SMALL = {
    **_SMALL,
    "networks": ("lean",),
    "methods": ("FULL", "USPLIT", "ULATDEC", "UDEC", "TURN", "centralised"),
    "rounds": 9,
    "flips": True,
    "round_samples": 240,
}

PRESETS: dict[str, Mapping[str, object]] = {
    # The table of arXiv 2406.12575 for Fashion-MNIST: days on one GPU; take single lines of it by options.
    "paper-fmnist": {
        **_PAPER,
        "data": "fashion-mnist",
        "institutions": (2, 5, 10),
        "splits": ("iid", "label-skew", "quantity-skew"),
        "rounds": 15,
        "batch_size": 128,
    },
    "paper-celeba": {
        **_PAPER,
        "data": "celeba",
        "image_size": 64,
        "channels": 3,
        "institutions": (5,),
        "splits": ("iid",),
        "rounds": 30,
        "batch_size": 64,
    },
    # All methods beside one place in about a quarter of an hour on two cores; images scored by the fast net.
    "cpu-small": _CPU_SMALL,
    # What a narrower ring costs in quality and saves on the wire, with the paper's recipe.
    "rings": {
        **_SMALL,
        "networks": ("fast",),
        "methods": ("FULL", "UDEC"),
        "bits": (32, 16, 8, 6, 4),
        "rounds": 5,
        "learning_rate": 1e-3,
        "ema_decay": 0.98,
        "round_samples": 0,
    },
    # What recipe, network, methods and outer momentum together reach, at K = 10: about three hours a seed on two quiet
    # cores, in slices. Saved as the paper does as well, so that its figures can stand beside these.
    "quality": {
        "data": "fashion-mnist",
        "weighting": "samples",
        "networks": ("lean",),
        "methods": ("FULL", "ULATDEC", "UDEC", "TURN", "centralised"),
        "institutions": (10,),
        "splits": ("iid", "label-skew"),
        "subset": 10_000,
        "seeds": (0, 1, 2),
        "rounds": 12,
        "epochs": 1,
        "batch_size": 16,
        "flips": True,
        "outer_momentum": 0.4,
        "first_bits": 12,  # updates of Muon come near the clip norm
        "sampler": "dpm",
        "sampler_steps": 15,
        "final_samples": (1000, 5000),
        "inception": True,
        "saving": ("rescaled", "clipped"),
    },
    # Every part of a study once, in under a minute; the images are noise.
    "smoke": {
        "data": "fashion-mnist",
        "weighting": "samples",
        "networks": ("tiny",),
        "methods": ("FULL", "UDEC", "centralised"),
        "institutions": (3,),
        "splits": ("label-skew",),
        "subset": 180,
        "test_images": 200,
        "rounds": 2,
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "centralised_epochs": (1,),
        "loss_images": 32,
        "grid": 6,
        "sampler": "dpm",
        "sampler_steps": 4,
        "round_samples": 30,
        "final_samples": (60,),
        "classifier_steps": 20,
    },
}


def preset(name: str) -> dict[str, object]:
    """The settings of a preset, with its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}", f"Presets are {', '.join(sorted(PRESETS))}")
    return {"name": name, **PRESETS[name]}
