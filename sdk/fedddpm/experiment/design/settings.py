"""Everything that decides the outcome of a study, from options, a TOML file or a preset; all checked before training.

    preset = "cpu-small"        # where to start from; what follows wins over it
    methods = ["FULL", "UDEC"]
    institutions = [5, 10]
    splits = ["iid", "label-skew"]
    rounds = 15

Lists are axes: the study runs every combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedddpm.errors import ConfigError
from fedddpm.files.toml_file import read_toml
from fedddpm.model.diffusion import Diffusion
from fedddpm.model.unet import architecture_of
from fedddpm_protocol.agreement.charter import USUAL_RECIPES
from fedddpm_protocol.agreement.methods import TURNS
from fedddpm_protocol.agreement.spec import ONE_MODEL, RINGS
from fedddpm_protocol.agreement.terms import LEAST_OUTER_RATE, MOST_MOMENTUM, RECIPES
from fedddpm_protocol.wire.messages import MAX_MEMBERS


def _known_ring(bits: int) -> int:
    if bits not in RINGS:
        raise ValueError(f"there is no ring of {bits} bits; known: {', '.join(map(str, RINGS))}")
    return bits


MethodName = Literal["FULL", "USPLIT", "ULATDEC", "UDEC", "TURN", "centralised"]
SplitName = Literal["iid", "label-skew", "quantity-skew"]
NetworkName = Literal["paper", "fast", "tiny", "lean"]
Saving = Literal["rescaled", "clipped"]
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[int, AfterValidator(_known_ring)]
MAX_INSTITUTIONS = MAX_MEMBERS  # beyond one cohort they sum in shards
SMALLEST_SCORED = 4  # images; precision and recall look at three neighbours


class StudySettings(BaseModel):
    """A study. Where to compute, and with how many workers, is not part of it: that does not change the outcome."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "custom"

    data: str = "fashion-mnist"  # or cifar10, celeba, a folder, an .npz file
    data_root: Path = Path("data")  # where the named sets lie
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    channels: Literal[1, 3] | None = None
    labels: str | None = None  # "folders", or class names with commas: sub-folders of a folder are classes
    subset: Count | None = None  # training images of all institutions together; None: all there are
    test_images: Count | None = None  # reference images for the scores; None: all

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("FULL", "ULATDEC", "UDEC", "centralised")
    institutions: Annotated[tuple[Annotated[int, Field(ge=2, le=MAX_INSTITUTIONS)], ...], Field(min_length=1)] = (6,)
    splits: Annotated[tuple[SplitName, ...], Field(min_length=1)] = ("iid",)
    concentration: Annotated[float, Field(gt=0)] = 0.5  # of the Dirichlet distribution of both skews
    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)] = ("fast",)
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (8,)  # of the rings in which updates travel
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)

    rounds: Count = 5  # R
    epochs: Count = 1  # E, local epochs a round
    max_steps: Annotated[int, Field(ge=0)] = 0  # local steps a round; 0: no limit
    batch_size: Count = 64
    recipe: Literal["paper", "modern"] | None = None  # how institutions train; None: what goes with the network
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # None: the recipe's
    flips: bool = False  # mirror images left to right, each by chance
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: none; images are then drawn from the weights themselves
    conditional: bool = False  # train with class labels, and draw images of all classes
    guidance: Annotated[float, Field(ge=0)] = 1.0  # of classifier-free guidance; 1: plain conditional
    centralised_epochs: tuple[Count, ...] = ()  # also looked at after so many epochs, beside R * E

    c_max: Annotated[int, Field(ge=0)] = 0  # institutions that may conspire with the aggregator
    weighting: Literal["equal", "samples"] = "equal"  # samples: FedAvg's, by the number of images
    clip_norm: Annotated[float, Field(gt=0)] = 100.0  # largest L2 norm of an update, the same in all rounds
    first_bits: Bits = 24  # at least so many while nothing is known of an update's size
    outer_learning_rate: Annotated[float, Field(ge=LEAST_OUTER_RATE, le=1)] = 1.0  # of the mean update, FULL and TURN
    outer_momentum: Annotated[float, Field(ge=0, le=MOST_MOMENTUM)] = 0.0  # with them: of the means, over the rounds
    error_feedback: bool = False  # what rounding takes from an update is added to the institution's next one
    insecure_plain_average: Literal["never", "below-floor", "always"] = "never"

    loss_images: Count = 512  # test images on which every loss is measured
    grid: Annotated[int, Field(ge=0, le=256)] = 16  # images in the picture of each round; 0: none
    sampler: Literal["ancestral", "ddim", "dpm"] = "ddim"
    sampler_steps: Count | None = None
    round_samples: Annotated[int, Field(ge=0)] = 0  # images for a score after each round; 0: none
    final_samples: tuple[Count, ...] = ()  # images for the scores at the end
    client_samples: Annotated[int, Field(ge=0)] = 0  # of each institution, where networks differ; 0: its pooled share
    inception: bool = False  # score the end by FID; otherwise by the fast net's FD alone
    saving: Annotated[tuple[Saving, ...], Field(min_length=1)] = ("rescaled",)
    classifier_steps: Count = 1000  # training of the fast feature net, in batches of 128

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for axis in ("methods", "institutions", "splits", "networks", "bits", "seeds", "final_samples", "saving"):
            values = getattr(self, axis)
            if len(set(values)) != len(values):
                raise ValueError(f"{axis} names something twice")
        Diffusion().visited(self.sampler, self.sampler_steps)
        if self.inception and not self.final_samples:
            raise ValueError("FID needs final_samples, for instance 1000")
        if self.max_steps and "centralised" in self.methods:
            raise ValueError("max_steps would cut the rounds short but not the centralised baseline; leave one out")
        if "TURN" in self.methods and self.rounds < len(TURNS):
            raise ValueError(f"with TURN a run has {len(TURNS)} rounds at least, so that each part has its turn")
        if "TURN" in self.methods and self.error_feedback:
            raise ValueError("error_feedback is not made up for with TURN; leave one of them out")
        if "TURN" in self.methods and self.ema_decay:
            raise ValueError(
                "with TURN a run's one model is looked at, and averages stay at home: leave ema_decay at 0"
            )
        if (self.outer_momentum or self.outer_learning_rate != 1) and not set(ONE_MODEL) & set(self.methods):
            raise ValueError(f"an outer optimizer goes with {' or '.join(ONE_MODEL)}, and neither is studied")
        local = {"ULATDEC", "UDEC"} & set(self.methods)
        shares = [self.client_share(n, k if local else 1) for n in self.final_samples for k in self.institutions]
        if shares and min(shares) < SMALLEST_SCORED:
            raise ValueError(f"final_samples must give each institution {SMALLEST_SCORED} images or more")
        if self.guidance != 1 and not self.conditional:
            raise ValueError("guidance needs conditional = true")
        if self.sampler == "ancestral" and self.sampler_steps is not None:
            raise ValueError("the ancestral sampler takes all steps; leave sampler_steps out or use ddim or dpm")
        if self.subset is not None and self.subset < 2 * max(self.institutions):
            raise ValueError(
                f"a subset of {self.subset} images does not go round {max(self.institutions)} institutions"
            )
        return self

    def recipe_for(self, network: str) -> str:
        """How a network is trained."""
        return self.recipe or USUAL_RECIPES[architecture_of(preset=network).prediction]

    def rate_for(self, network: str) -> float:
        """The learning rate that a network is trained with."""
        return self.learning_rate or RECIPES[self.recipe_for(network)].learning_rate

    def client_share(self, count: int, institutions: int) -> int:
        """Images of one institution that are scored by themselves, where ``count`` are drawn from all."""
        return self.client_samples or -(-count // institutions)

    @property
    def federated(self) -> tuple[str, ...]:
        """The methods that have institutions."""
        return tuple(method for method in self.methods if method != "centralised")

    @property
    def draws_images(self) -> bool:
        """Whether the study scores images, so that a feature net and reference images are needed."""
        return bool(self.round_samples or self.final_samples)


def build(*layers: Mapping[str, object], where: str = "the options") -> StudySettings:
    """Settings from ``layers``, later ones over earlier ones; None stands for "not given".

    Raises:
        ConfigError: a setting is unknown or wrong; it is named, with ``where`` it came from.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        if "sampler" in given:
            merged.pop("sampler_steps", None)  # those of another sampler
        merged |= given
    try:
        return StudySettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(piece) for piece in first["loc"]) or "study"
        what = "is unknown" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the setting {name!r}: {what}", f"Correct it in {where}") from error


def read_settings(path: Path) -> dict[str, object]:
    """The settings of a TOML file as they stand there; relative folders start at the file.

    Raises:
        ConfigError: the file cannot be read, or is no TOML.
    """
    settings: dict[str, object] = read_toml(path)
    root, data = settings.get("data_root"), settings.get("data")
    if isinstance(root, str):
        settings["data_root"] = path.parent / root
    if isinstance(data, str) and (path.parent / data).exists():
        settings["data"] = str(path.parent / data)
    return settings
