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

    [samples]
    count = 16

    [observe]
    tensorboard = "tensorboard"

Paths in a TOML file are relative to the file.

A setting is written down here and nowhere else: name, type, bounds, default, and the help of its option, where it is
one of ``fedddpm participate``, whose help keeps this order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedddpm.errors import ConfigError
from fedddpm.files.toml_file import read_toml

if TYPE_CHECKING:
    import httpx

Setting: TypeAlias = "str | int | float | bool | Path | Mapping[str, Setting] | BaseModel | None"
Seconds = Annotated[float, Field(gt=0)]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Option:
    """Makes a setting an option of the command line as well, with this help."""

    help: str
    name: str = ""  # where it is not the setting's
    kind: type | None = None  # of its value, where it is not the setting's


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # a proxy's URL has a password


class LocalPolicyOptions(_Options):
    """What this institution accepts, whatever the aggregator asks.

    ``preset=None`` accepts every network that this package builds by itself; the tensors are checked in any case.
    """

    min_cohort: Annotated[int, Field(ge=2, le=128), Option("smallest sum to be part of")] = 3
    c_max: Annotated[int, Field(ge=0), Option("conspirators the roster must allow for")] = 0
    preset: Annotated[Literal["paper", "fast", "tiny", "lean"] | None, Option("the network to train")] = None
    max_epochs: Annotated[int, Field(ge=1), Option("epochs a round")] = 1000
    max_steps: Annotated[int, Field(ge=0), Option("steps a round")] = 0  # 0: no limit of our own
    max_seconds: Annotated[Seconds | None, Option("training time a round")] = None
    min_images: Annotated[int, Field(ge=1), Option("own images to take part at all")] = 32  # to train on
    min_steps: Annotated[int, Field(ge=1), Option("fewest steps behind an update")] = 4
    min_images_seen: Annotated[int, Field(ge=1), Option("fewest images behind an update, repeats counted")] = 128
    max_learning_rate: Annotated[float, Field(gt=0), Option("largest learning rate")] = 0.01
    max_clip_norm: Annotated[float, Field(gt=0), Option("largest update norm")] = 100.0
    max_outer_momentum: Annotated[float, Field(ge=0, le=0.9), Option("largest outer momentum")] = 0.9  # the protocol's
    max_small_gradients: Annotated[
        float, Field(gt=0, le=1), Option("share of the first gradient below Adam's epsilon; 1: no limit")
    ] = 0.5
    weight_slack: Annotated[float, Field(ge=1), Option("widens what honest weights lie within; 1e9: no limit")] = 1.0
    allow_weights: Annotated[bool, Option("a first model without a seed, if its weights look honest")] = False
    warn_share: Annotated[float, Field(gt=0), Option("share of the mean to warn above")] = 0.6
    max_share: Annotated[float, Field(gt=0), Option("share of the mean to stop above")] = 0.9  # 1e9: no limit
    stop_on_alarm: Annotated[bool, Option("stop before the next training when an alarm rings")] = False
    min_bits: Annotated[int, Field(ge=4, le=32), Option("narrowest ring for updates")] = 8
    check_sums: Annotated[float, Field(ge=0, allow_inf_nan=False), Option("how much of a sum to fetch for a check")] = (
        1.0  # times its size, from 1 on one chunk at least; 0: none; as many as there are institutions: every chunk
    )
    require_checks: Annotated[bool, Option("go on only where the sum could be checked")] = False
    disclose_samples: Annotated[bool, Option("give the number of images in clear if asked")] = False
    approve_runs: Annotated[bool, Option("wait with each new run for fedddpm approve")] = False
    keep_for_auditor: bool = True  # what fedddpm open-update needs, sealed to the roster's auditor
    allow_two_party: Annotated[bool, Option("hides from the server, not from the other party")] = False

    @model_validator(mode="after")
    def _two_party_is_said_aloud(self) -> Self:
        if self.min_cohort == 2 and not self.allow_two_party:
            raise ValueError("min_cohort = 2 needs allow_two_party = true")
        return self

    @model_validator(mode="after")
    def _floor_is_below_ceiling(self) -> Self:
        if self.max_steps and self.max_steps < self.min_steps:
            raise ValueError(
                f"max_steps = {self.max_steps} ends every training below min_steps = {self.min_steps}: raise the one"
                " or lower the other"
            )
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

    ema_decay: Annotated[
        float | None, Field(ge=0, lt=1), Option("decay of the average of the weights; 0: keep none")
    ] = 0.995
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of labels hidden, for guidance
    flips: Annotated[bool, Option("mirror images left to right, each by chance; not for a chest")] = False
    error_feedback: Annotated[bool, Option("add what rounding took to the next update")] = False  # in a narrow ring
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Option("auto, float32 or bfloat16", kind=str)] = (
        "auto"  # bfloat16 on CUDA, float32 on the CPU
    )
    compile: bool | None = None  # None: on CUDA, where a round is long enough to gain by it

    @field_validator("ema_decay")
    @classmethod
    def _none_is_zero(cls, value: float | None) -> float:
        return value or 0.0  # where settings are merged None means "not given"


class NetworkOptions(_Options):
    """The way to the aggregator."""

    proxy: Annotated[str | None, Field(repr=False), Option("http://host:port")] = None
    ca_bundle: Annotated[Path | None, Option("PEM of a private authority")] = None  # instead of the system's
    client_certificate: Annotated[Path | None, Option("PEM for mutual TLS")] = None
    client_key: Annotated[Path | None, Option("its key")] = None
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Annotated[float, Field(gt=25)] = 60.0  # of silence; who waits hears something every 20 s
    poll_s: Annotated[float, Field(ge=0.2, le=300)] = 240.0  # how long one poll waits for news
    patience_s: Annotated[float, Field(ge=0), Option("seconds an outage may last", name="patience")] = 24 * 3600.0

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

    port: Annotated[
        int | None,
        Field(ge=0, le=65535),
        Option("serve /metrics and /healthz on this port, 0: any free one", name="metrics_port"),
    ] = None  # None: nowhere
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()  # under which it may be asked, beside addresses, localhost and host
    silence_s: Seconds = 600.0  # without a sign of life, after which /healthz says so: longer than any one step


class SamplesOptions(_Options):
    """Pictures that this institution draws for itself when a round has a result; nothing of them leaves."""

    count: Annotated[int, Field(ge=0, le=256), Option("pictures to draw after a round; 0: none", name="samples")] = 16
    every: Annotated[int, Field(ge=1)] = 1  # rounds, and after the last of a run
    steps: Annotated[int, Field(ge=2, le=999)] = 10  # of the sampler dpm
    max_share: Annotated[float, Field(gt=0)] = 0.05  # of the round's training time; what takes 2 s is drawn anyway


class ObserveOptions(_Options):
    """Who else is told of each round beside ``rounds.csv``: programs that draw curves, on this machine."""

    tensorboard: Annotated[Path | None, Option("folder for TensorBoard's files")] = None
    mlflow: Annotated[
        str | Path | None, Field(repr=False), Option("folder of an MLflow store, or its tracking URI", kind=str)
    ] = None  # a URI may have a password
    allow_remote: bool = False  # an MLflow server elsewhere: then figures and pictures leave this machine

    @field_validator("tensorboard", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        if re.match("[a-z][a-z0-9+.-]+:/", str(value), re.IGNORECASE):  # a path has one slash left of an address
            raise ValueError("must be a folder of this machine, not an address: what it holds may not leave")
        return value

    @field_validator("mlflow")
    @classmethod
    def _as_text(cls, value: str | Path | None) -> str | None:
        return None if value is None else str(value)

    @model_validator(mode="after")
    def _stays_here(self) -> Self:
        if self.mlflow is not None and not self.allow_remote and not is_local_store(str(self.mlflow)):
            raise ValueError(
                "mlflow names a server, to which figures and pictures of this institution would go: give a folder, a"
                " file: URI or sqlite:///file, or set allow_remote = true if that is meant"
            )
        return self


class ClientConfig(_Options):
    """All settings of one institution."""

    aggregator_url: Annotated[str, Option("https://...")]
    identity: Annotated[Path, Option("key file of fedddpm keygen")]
    federation_root: Annotated[str, Option("the root's public key, or a file with it")]
    data: Annotated[str, Option("fashion-mnist, cifar10, celeba, a folder or an .npz")]
    state_dir: Annotated[Path, Option("folder for all that survives a restart")]
    member_id: Annotated[str | None, Option("id in the roster, if not that of the identity")] = None
    device: Annotated[str, Option("auto, cpu, cuda or cuda:N")] = "auto"
    holdout: Annotated[float, Field(gt=0, lt=1), Option("share of images that only measures the loss")] = 0.1
    image_size: Annotated[int | None, Field(ge=8, le=1024), Option("resize files of a folder to so many pixels")] = None
    channels: Annotated[int | None, Field(ge=1, le=16), Option("1 grey, 3 colour")] = None
    labels: Annotated[str | None, Option("classes: 'folders', or names of sub-folders: cat,dog")] = None  # in order
    cache: Annotated[bool | Path, Option("keep decoded images for the next start", kind=bool)] = True  # a folder: there
    data_root: Annotated[Path | None, Option("where the named data sets lie")] = None
    seed: Annotated[int, Option("decides which images are held out")] = 0  # training draws from a secret of its own
    limit: Annotated[int | None, Field(ge=1), Option("use at most so many images")] = None
    after_restore: Annotated[bool, Option("the state is from a backup")] = False
    policy: LocalPolicyOptions = LocalPolicyOptions()
    learning: LearningOptions = LearningOptions()
    network: NetworkOptions = NetworkOptions()
    stand_by: Annotated[bool, Option("when a run has ended, wait for the next one")] = False
    metrics: MetricsOptions = MetricsOptions()
    samples: SamplesOptions = SamplesOptions()
    observe: ObserveOptions = ObserveOptions()
    log_format: Annotated[Literal["text", "json"], Option("of the lines where no bars are drawn")] = "text"

    @field_validator("data", "federation_root", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("aggregator_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        url = _url(value)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must look like https://aggregator.example.org")
        if url.query or url.fragment or url.userinfo:
            raise ValueError("must hold neither a query nor credentials")
        return value.rstrip("/")

    @property
    def is_plain_http(self) -> bool:
        """Whether who takes part, and when, can be read on the way: http to another machine."""
        url = _url(self.aggregator_url)
        return url.scheme == "http" and url.host not in _LOOPBACK


def described_settings(names: Collection[str]) -> str:
    """One line for each of these settings of an institution, for documentation: name, default, help."""
    lines = []
    for name, field in ((name, field) for name, field in ClientConfig.model_fields.items() if name in names):
        option = next((entry for entry in field.metadata if isinstance(entry, Option)), None)
        if option is None:
            lines.append(f"{name}: {type(field.default).__name__}, settings of their own")
        else:
            lines.append(f"{name} ({field.default!r}): {option.help}")
    return "\n".join(lines)


def is_local_store(target: str) -> bool:
    """Whether an MLflow store is a folder or a database file of this machine."""
    scheme = target.partition(":")[0].lower()
    if ":" not in target or not re.fullmatch("[a-z][a-z0-9+.-]+", scheme):
        return True
    host = urlsplit(target).netloc
    return (scheme == "file" and host in ("", "localhost")) or (scheme.split("+")[0] == "sqlite" and not host)


def _url(text: str) -> httpx.URL:
    import httpx  # not before there is a setting: the command's help is made from this module, and waits for nothing

    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError("is no URL") from error


def load_config(path: Path | None = None, overrides: Mapping[str, object] | None = None) -> ClientConfig:
    """Settings from a TOML file, with ``overrides`` (None = not given) on top; nested tables are merged.

    Raises:
        ConfigError: the file cannot be read, or a setting is missing, unknown or wrong.
    """
    settings: dict[str, Any] = {} if path is None else _read_toml(path)
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


def _read_toml(path: Path) -> dict[str, Any]:
    settings = read_toml(path)
    _anchor(settings, _paths(ClientConfig), path.parent)
    _anchor(settings, ("federation_root", "data"), path.parent, only_existing=True)
    for name, field in ClientConfig.model_fields.items():
        model, table = field.annotation, settings.get(name)
        if isinstance(model, type) and issubclass(model, BaseModel) and isinstance(table, dict):
            _anchor(table, _paths(model), path.parent)
    return settings


def _paths(model: type[BaseModel]) -> tuple[str, ...]:
    """The settings that are paths, or may be."""
    fields = model.model_fields.items()
    return tuple(name for name, field in fields if Path in (field.annotation, *get_args(field.annotation)))


def _anchor(settings: dict[str, Any], names: tuple[str, ...], folder: Path, *, only_existing: bool = False) -> None:
    """Make relative paths start at ``folder``; values that need not be paths only where such a file exists."""
    for name in names:
        value = settings.get(name)
        if not isinstance(value, str) or len(value) >= 4096 or _is_uri(value):
            continue
        there = os.path.exists(folder / value)  # noqa: PTH110 - Path.exists raises, with the text, on too long a name
        if there or not only_existing:
            settings[name] = str(folder / value)


def _is_uri(value: str) -> bool:
    return "://" in value or value.startswith(("file:", "sqlite:"))


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _explain(error: ValidationError, path: Path | None) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(piece) for piece in first["loc"]) or "settings"
    what = {"missing": "is missing", "extra_forbidden": "is unknown"}.get(first["type"], first["msg"])
    return ConfigError(
        f"the setting {name!r}: {what.removeprefix('Value error, ')}",
        f"Correct it in {path}" if path else "See fedddpm participate --help",
    )
