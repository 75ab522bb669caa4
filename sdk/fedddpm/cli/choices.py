"""What several commands let the user choose from."""

from enum import StrEnum

CONFIG_VARIABLE = "FEDDDPM_SITE_CONFIG"  # names the TOML file where no option does


class Preset(StrEnum):
    """The networks of this package."""

    PAPER = "paper"
    FAST = "fast"
    TINY = "tiny"
    LEAN = "lean"


class SamplerName(StrEnum):
    """The ways to draw an image."""

    ANCESTRAL = "ancestral"
    DDIM = "ddim"
    DPM = "dpm"
    HEUN = "heun"


class WeightsName(StrEnum):
    """Which weights of a network draw the images: their moving average, or themselves."""

    EMA = "ema"
    MODEL = "model"
