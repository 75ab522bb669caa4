"""Everything an institution can set, by arguments, by a TOML file, or both (arguments win).

    aggregator_url = "https://aggregator.example.org"
    identity = "hospital-a.key"
    federation_root = "1f9e...64 hex digits"
    data = "/srv/images"
    state_dir = "state"

    [policy]
    min_cohort = 4

    [learning]
    ema_decay = 0.999

    [network]
    proxy = "http://proxy.hospital.example:3128"

    [metrics]
    port = 9464

Paths in a TOML file are relative to the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedddpm.errors import ConfigError
from fedddpm.files.toml_file import read_toml

Setting: TypeAlias = "str | int | float | bool | Path | Mapping[str, Setting] | BaseModel | None"
Seconds = Annotated[float, Field(gt=0)]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # a proxy's URL has a password


class LocalPolicyOptions(_Options):
    """What this institution accepts, whatever the aggregator asks.

    ``preset=None`` accepts every network that this package builds by itself; the tensors are checked in any case.
    """

    min_cohort: Annotated[int, Field(ge=2, le=128)] = 3
    c_max: Annotated[int, Field(ge=0)] = 0
    preset: Literal["paper", "fast", "tiny"] | None = None
    max_steps: Annotated[int, Field(ge=0)] = 0  # local steps a round; 0: no limit of our own
    max_epochs: Annotated[int, Field(ge=1)] = 1000
    max_seconds: Seconds | None = None  # training time a round
    max_clip_norm: Annotated[float, Field(gt=0)] = math.inf
    warn_share: Annotated[float, Field(gt=0)] = 0.6  # of the own update in a mean, above which the log says so
    max_share: Annotated[float, Field(gt=0)] = 0.9  # above which no further update is sent; 1e9: no limit
    min_bits: Annotated[int, Field(ge=4, le=32)] = 8  # of the ring that updates travel in
    disclose_samples: bool = False  # whether a round may ask for the number of images in clear
    allow_two_party: bool = False  # two institutions hide updates from the aggregator, not from each other

    @model_validator(mode="after")
    def _two_party_is_said_aloud(self) -> Self:
        if self.min_cohort == 2 and not self.allow_two_party:
            raise ValueError("min_cohort = 2 needs allow_two_party = true")
        return self

    @model_validator(mode="after")
    def _equals_may_take_part(self) -> Self:
        equals = 1 / (2 if self.allow_two_party and self.min_cohort <= 3 else self.min_cohort)
        if self.max_share <= equals:
            raise ValueError(
                f"max_share = {self.max_share:g} would stop an institution that is just like the others: of the"
                f" smallest sum that this policy accepts its share is {equals:.2f}; set a larger one"
            )
        if self.warn_share > self.max_share:
            raise ValueError(f"warn_share = {self.warn_share:g} is above max_share = {self.max_share:g}: lower it too")
        return self


class LearningOptions(_Options):
    """How this institution trains, where that is its own affair: nothing of it is agreed or told."""

    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.995  # of the average of the weights; 0: none is kept
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of labels hidden, for guidance
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on the CPU
    error_feedback: bool = False  # what rounding to a narrow ring takes from an update is added to the next one
    compile: bool | None = None  # None: on CUDA, where a round is long enough to gain by it

    @field_validator("ema_decay")
    @classmethod
    def _none_is_zero(cls, value: float | None) -> float:
        return value or 0.0  # where settings are merged None means "not given"


class NetworkOptions(_Options):
    """The way to the aggregator."""

    proxy: Annotated[str | None, Field(repr=False)] = None
    ca_bundle: Path | None = None  # PEM, instead of the system's authorities
    client_certificate: Path | None = None  # PEM, for mutual TLS
    client_key: Path | None = None
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Annotated[float, Field(gt=25)] = 60.0  # of silence; who waits hears something every 20 s
    poll_s: Annotated[float, Field(ge=0.2, le=300)] = 240.0  # how long one poll waits for news
    patience_s: Annotated[float, Field(ge=0)] = 24 * 3600.0  # how long an outage may last

    @property
    def longest_silence_s(self) -> float:
        """How long an answer may wait, so that it comes before reading is given up."""
        return 0.75 * self.read_timeout_s

    @model_validator(mode="after")
    def _certificate_and_key_together(self) -> Self:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        return self


class MetricsOptions(_Options):
    """Where this process tells how it is; nobody is asked who he is there, so keep it inside."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None  # None: nowhere; 0: any free one
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()  # under which it may be asked, beside addresses, localhost and host
    silence_s: Seconds = 600.0  # without a sign of life, after which /healthz says so: longer than any one step


class ClientConfig(_Options):
    """All settings of one institution."""

    aggregator_url: str
    identity: Path
    federation_root: str  # the root's public key, or a file that holds it
    data: str  # fashion-mnist, cifar10, celeba, a folder of images or an .npz file
    state_dir: Path
    member_id: str | None = None  # default: the id in the identity file
    device: str = "auto"
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the images that only measures the loss
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    channels: Annotated[int, Field(ge=1, le=16)] | None = None
    labels: str | None = None  # "folders": sub-folders are classes, sorted; or the classes in order: "cat,dog"
    cache: bool | Path = True  # where decoded images are kept; False: nowhere
    data_root: Path | None = None  # where the named data sets lie
    seed: int = 0  # which images are held out; training draws from a secret of its own
    limit: Annotated[int, Field(ge=1)] | None = None  # use at most so many images
    after_restore: bool = False  # the state folder came back from a backup
    stand_by: bool = False  # when a run has ended, wait for the next one
    log_format: Literal["text", "json"] = "text"  # of the command's lines, where it draws no bars
    policy: LocalPolicyOptions = LocalPolicyOptions()
    learning: LearningOptions = LearningOptions()
    network: NetworkOptions = NetworkOptions()
    metrics: MetricsOptions = MetricsOptions()

    @field_validator("data", "federation_root", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("aggregator_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        try:
            url = httpx.URL(value)
        except (httpx.InvalidURL, TypeError) as error:
            raise ValueError("is no URL") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must look like https://aggregator.example.org")
        if url.query or url.fragment or url.userinfo:
            raise ValueError("must hold neither a query nor credentials")
        return value.rstrip("/")

    @property
    def is_plain_http(self) -> bool:
        """Whether who takes part, and when, can be read on the way: http to another machine."""
        url = httpx.URL(self.aggregator_url)
        return url.scheme == "http" and url.host not in _LOOPBACK


def load_config(path: Path | None = None, overrides: Mapping[str, Setting] | None = None) -> ClientConfig:
    """Settings from a TOML file, with ``overrides`` (None = not given) on top; nested tables are merged.

    Raises:
        ConfigError: the file cannot be read, or a setting is missing, unknown or wrong.
    """
    settings = {} if path is None else _read_toml(path)
    for name, value in (overrides or {}).items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        if isinstance(value, Mapping):
            table = dict(_table(settings.get(name)))
            table.update({key: item for key, item in value.items() if item is not None})
            settings[name] = table
        elif value is not None:
            settings[name] = value
    try:
        return ClientConfig.model_validate(settings)
    except ValidationError as error:
        raise _explain(error, path) from error


def _read_toml(path: Path) -> dict[str, Setting]:
    settings: dict[str, Setting] = read_toml(path)
    _anchor(settings, ("identity", "state_dir", "data_root", "cache"), path.parent)
    _anchor(settings, ("federation_root", "data"), path.parent, only_existing=True)
    network = settings.get("network")
    if isinstance(network, dict):
        _anchor(network, ("ca_bundle", "client_certificate", "client_key"), path.parent)
    return settings


def _anchor(settings: dict[str, Setting], names: tuple[str, ...], folder: Path, *, only_existing: bool = False) -> None:
    """Make relative paths start at ``folder``; values that need not be paths only where such a file exists."""
    for name in names:
        value = settings.get(name)
        if not isinstance(value, str) or len(value) >= 4096:
            continue
        there = os.path.exists(folder / value)  # noqa: PTH110 - Path.exists raises, with the text, on too long a name
        if there or not only_existing:
            settings[name] = str(folder / value)


def _table(value: Setting) -> Mapping[str, Setting]:
    return value if isinstance(value, Mapping) else {}


def _explain(error: ValidationError, path: Path | None) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(piece) for piece in first["loc"]) or "settings"
    what = {"missing": "is missing", "extra_forbidden": "is unknown"}.get(first["type"], first["msg"])
    return ConfigError(
        f"the setting {name!r}: {what.removeprefix('Value error, ')}",
        f"Correct it in {path}" if path else "See fedddpm participate --help",
    )
