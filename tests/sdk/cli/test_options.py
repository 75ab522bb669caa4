"""The options of ``fedddpm participate``: names, order, help, and the setting that each of them is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedddpm.cli import participate
from fedddpm.cli.app import app
from fedddpm.config import ClientConfig, load_config

# flags, help, a value for the command line, the setting, and the value there
Row = tuple[str, str, str | None, str, Any]
OPTIONS: list[Row] = [
    ("--aggregator-url", "https://...", "http://b.example", "aggregator_url", "http://b.example"),
    ("--identity", "key file of fedddpm keygen", "b.key", "identity", Path("b.key")),
    ("--federation-root", "the root's public key, or a file with it", "cd" * 32, "federation_root", "cd" * 32),
    ("--data", "fashion-mnist, cifar10, celeba, a folder or an .npz", "celeba", "data", "celeba"),
    ("--state-dir", "folder for all that survives a restart", "other", "state_dir", Path("other")),
    ("--member-id", "id in the roster, if not that of the identity", "b", "member_id", "b"),
    ("--rounds", "stop after so many rounds", "3", "", None),
    ("--device", "auto, cpu, cuda or cuda:N", "cpu", "device", "cpu"),
    ("--holdout", "share of images that only measures the loss", "0.2", "holdout", 0.2),
    ("--image-size", "resize files of a folder to so many pixels", "32", "image_size", 32),
    ("--channels", "1 grey, 3 colour", "3", "channels", 3),
    ("--labels", "classes: 'folders', or names of sub-folders: cat,dog", "cat,dog", "labels", "cat,dog"),
    ("--cache --no-cache", "keep decoded images for the next start", None, "cache", False),
    ("--data-root", "where the named data sets lie", "sets", "data_root", Path("sets")),
    ("--seed", "decides which images are held out", "5", "seed", 5),
    ("--limit", "use at most so many images", "100", "limit", 100),
    ("--after-restore", "the state is from a backup", None, "after_restore", True),
    ("--min-cohort", "policy: smallest sum to be part of", "4", "policy.min_cohort", 4),
    ("--c-max", "policy: conspirators the roster must allow for", "1", "policy.c_max", 1),
    ("--preset", "policy: the network to train", "tiny", "policy.preset", "tiny"),
    ("--max-epochs", "policy: epochs a round", "9", "policy.max_epochs", 9),
    ("--max-steps", "policy: steps a round", "90", "policy.max_steps", 90),
    ("--max-seconds", "policy: training time a round", "1.5", "policy.max_seconds", 1.5),
    ("--min-images", "policy: own images to take part at all", "7", "policy.min_images", 7),
    ("--min-steps", "policy: fewest steps behind an update", "3", "policy.min_steps", 3),
    (
        "--min-images-seen",
        "policy: fewest images behind an update, repeats counted",
        "99",
        "policy.min_images_seen",
        99,
    ),
    ("--max-learning-rate", "policy: largest learning rate", "0.002", "policy.max_learning_rate", 0.002),
    ("--max-clip-norm", "policy: largest update norm", "2.5", "policy.max_clip_norm", 2.5),
    ("--max-outer-momentum", "policy: largest outer momentum", "0.25", "policy.max_outer_momentum", 0.25),
    (
        "--max-small-gradients",
        "policy: share of the first gradient below Adam's epsilon; 1: no limit",
        "0.2",
        "policy.max_small_gradients",
        0.2,
    ),
    (
        "--weight-slack",
        "policy: widens what honest weights lie within; 1e9: no limit",
        "2",
        "policy.weight_slack",
        2.0,
    ),
    (
        "--allow-weights",
        "policy: a first model without a seed, if its weights look honest",
        None,
        "policy.allow_weights",
        True,
    ),
    ("--warn-share", "policy: share of the mean to warn above", "0.5", "policy.warn_share", 0.5),
    ("--max-share", "policy: share of the mean to stop above", "0.8", "policy.max_share", 0.8),
    (
        "--stop-on-alarm",
        "policy: stop before the next training when an alarm rings",
        None,
        "policy.stop_on_alarm",
        True,
    ),
    ("--min-bits", "policy: narrowest ring for updates", "12", "policy.min_bits", 12),
    ("--check-sums", "policy: how much of a sum to fetch for a check", "2.5", "policy.check_sums", 2.5),
    (
        "--require-checks",
        "policy: go on only where the sum could be checked",
        None,
        "policy.require_checks",
        True,
    ),
    (
        "--disclose-samples",
        "policy: give the number of images in clear if asked",
        None,
        "policy.disclose_samples",
        True,
    ),
    ("--approve-runs", "policy: wait with each new run for fedddpm approve", None, "policy.approve_runs", True),
    (
        "--allow-two-party",
        "policy: hides from the server, not from the other party",
        None,
        "policy.allow_two_party",
        True,
    ),
    ("--ema-decay", "learning: decay of the average of the weights; 0: keep none", "0.9", "learning.ema_decay", 0.9),
    ("--flips", "learning: mirror images left to right, each by chance; not for a chest", None, "learning.flips", True),
    (
        "--error-feedback",
        "learning: add what rounding took to the next update",
        None,
        "learning.error_feedback",
        True,
    ),
    ("--precision", "learning: auto, float32 or bfloat16", "float32", "learning.precision", "float32"),
    ("--proxy", "network: http://host:port", "http://p:1", "network.proxy", "http://p:1"),
    ("--ca-bundle", "network: PEM of a private authority", "ca.pem", "network.ca_bundle", Path("ca.pem")),
    (
        "--client-certificate",
        "network: PEM for mutual TLS",
        "c.pem",
        "network.client_certificate",
        Path("c.pem"),
    ),
    ("--client-key", "network: its key", "c.key", "network.client_key", Path("c.key")),
    ("--patience", "network: seconds an outage may last", "7", "network.patience_s", 7.0),
    ("--stand-by", "when a run has ended, wait for the next one", None, "stand_by", True),
    (
        "--metrics-port",
        "metrics: serve /metrics and /healthz on this port, 0: any free one",
        "9464",
        "metrics.port",
        9464,
    ),
    ("--samples", "samples: pictures to draw after a round; 0: none", "4", "samples.count", 4),
    ("--tensorboard", "observe: folder for TensorBoard's files", "curves", "observe.tensorboard", Path("curves")),
    (
        "--mlflow",
        "observe: folder of an MLflow store, or its tracking URI",
        "sqlite:///runs.db",
        "observe.mlflow",
        "sqlite:///runs.db",
    ),
    ("--log-format", "of the lines where no bars are drawn", "json", "log_format", "json"),
    ("--progress --no-progress", "draw bars; default: on a terminal", None, "", None),
]
SETTINGS = [row for row in OPTIONS if row[3]]
ONLY_IN_FILES = {
    "policy.keep_for_auditor": False,
    "learning.label_dropout": 0.5,
    "learning.compile": True,
    "network.connect_timeout_s": 3.0,
    "network.read_timeout_s": 30.0,
    "network.poll_s": 5.0,
    "metrics.host": "0.0.0.0",  # noqa: S104  # nothing is served here
    "metrics.names": ("a",),
    "metrics.silence_s": 60.0,
    "samples.every": 3,
    "samples.steps": 20,
    "samples.max_share": 0.5,
    "observe.allow_remote": True,
}
REQUIRED = {
    "aggregator_url": "http://127.0.0.1:9",
    "identity": "a.key",
    "federation_root": "ab" * 32,
    "data": "fashion-mnist",
    "state_dir": "state",
}
NEEDED_WITH = {"network.client_key": {"network": {"client_certificate": "c.pem"}}}


def with_setting(place: str, value: Any) -> dict[str, Any]:
    """The required settings and this one, as a file's tables."""
    table, _, name = place.rpartition(".")
    settings: dict[str, Any] = {**REQUIRED, **NEEDED_WITH.get(place, {})}
    if not table:
        return settings | {name: value}
    return settings | {table: {**settings.get(table, {}), name: value}}


def found(config: ClientConfig, place: str) -> Any:
    value: Any = config
    for name in place.split("."):
        value = getattr(value, name)
    return value


def everything(config: ClientConfig) -> dict[str, Any]:
    """All settings, each under its place."""
    told: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        told |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return told


def written(settings: dict[str, Any]) -> str:
    """A TOML file of settings."""

    def one(name: str, value: Any) -> str:
        return f"{name} = {json.dumps(str(value) if isinstance(value, Path) else value)}\n"

    top = "".join(one(name, value) for name, value in settings.items() if not isinstance(value, dict))
    tables = (
        f"[{name}]\n" + "".join(one(*item) for item in value.items())
        for name, value in settings.items()
        if isinstance(value, dict)
    )
    return top + "".join(tables)


def taken(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ClientConfig:
    """The settings with which ``participate`` would take part."""
    kept: list[ClientConfig] = []
    monkeypatch.setattr(participate, "_take_part", lambda config, *_: kept.append(config))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["participate", *arguments])
    assert result.exit_code == 0, result.output
    return kept[0]


def commands_options() -> list[Any]:
    command: Any = typer.main.get_command(app)
    return [option for option in command.commands["participate"].params if option.name not in ("help", "config")]


def test_the_options_are_these_in_this_order() -> None:
    shown = [(" ".join([*option.opts, *option.secondary_opts]), option.help) for option in commands_options()]
    assert shown == [(flags, help_) for flags, help_, *_ in OPTIONS]
    assert all(
        option.default is None and option.envvar is None and not option.required for option in commands_options()
    )


def test_the_file_is_named_first_or_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command: Any = typer.main.get_command(app)
    first = command.commands["participate"].params[0]
    assert (first.opts, first.envvar) == (["--config"], "FEDDDPM_SITE_CONFIG")
    (tmp_path / "site.toml").write_text(written(with_setting("seed", 9)))
    monkeypatch.setenv("FEDDDPM_SITE_CONFIG", str(tmp_path / "site.toml"))
    assert taken(monkeypatch).seed == 9


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[3])
def test_an_option_is_this_setting_and_nothing_else(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, _, given, place, value = row
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.toml").write_text(written({**REQUIRED, **NEEDED_WITH.get(place, {})}))
    plain = everything(load_config(Path("site.toml")))
    words = [flags.split()[-1], *([] if given is None else [given])]
    config = taken(monkeypatch, "--config", "site.toml", *words)
    assert found(config, place) == value != plain[place]
    assert type(found(config, place)) is type(value)
    changed = {name for name, item in everything(config).items() if item != plain[name]}
    assert changed == {place}


@pytest.mark.parametrize(
    ("place", "value"), [*((row[3], row[4]) for row in SETTINGS), *ONLY_IN_FILES.items()], ids=lambda one: str(one)[:30]
)
def test_a_file_holds_it_under_this_name(place: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(written(with_setting(place, value)))
    expected = tmp_path / value if isinstance(value, Path) else value
    assert found(load_config(tmp_path / "site.toml"), place) == expected


def test_every_setting_is_in_one_of_the_two_lists() -> None:
    known = {row[3] for row in SETTINGS} | set(ONLY_IN_FILES)
    assert set(everything(load_config(overrides=REQUIRED))) == known


@pytest.mark.parametrize(
    "words", [("--preset", "huge"), ("--log-format", "xml"), ("--holdout", "much"), ("--rounds", "0")]
)
def test_what_the_command_line_refuses(words: tuple[str, str]) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["participate", *words])
    assert result.exit_code == 2
    assert "Invalid value for" in result.output
    assert words[0] in result.output


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("--precision", "half"), "learning.precision"),
        (("--holdout", "2"), "holdout"),
        (("--min-cohort", "1"), "policy.min_cohort"),
        (("--image-size", "4"), "image_size"),
        (("--metrics-port", "70000"), "metrics.port"),
        (("--samples", "-1"), "samples.count"),
        (("--tensorboard", "s3://bucket/curves"), "observe.tensorboard"),
    ],
)
def test_what_the_settings_refuse(words: tuple[str, str], setting: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(written(REQUIRED))
    with contextlib.chdir(tmp_path):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["participate", "--config", "site.toml", *words])
    assert result.exit_code == 2
    assert f"the setting '{setting}'" in result.output
