"""The options of ``fedddpm experiment``, and the settings of a study that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.cli.experiment import _SETTINGS
from fedddpm.experiment import study
from fedddpm.experiment.design.settings import StudySettings

GIVEN: dict[str, tuple[str, Any]] = {
    "methods": ("--method FULL --method UDEC", ("FULL", "UDEC")),
    "institutions": ("-k 4 --institutions 8", (4, 8)),
    "splits": ("--split label-skew", ("label-skew",)),
    "networks": ("--network tiny --network paper", ("tiny", "paper")),
    "bits": ("--bits 8 --bits 12", (8, 12)),
    "first_bits": ("--first-bits 16", 16),
    "seeds": ("--seed 3 --seed 4", (3, 4)),
    "rounds": ("--rounds 2", 2),
    "epochs": ("--epochs 3", 3),
    "batch_size": ("--batch-size 16", 16),
    "recipe": ("--recipe modern", "modern"),
    "learning_rate": ("--learning-rate 0.01", 0.01),
    "flips": ("--flips", True),
    "ema_decay": ("--ema-decay 0.9", 0.9),
    "outer_learning_rate": ("--outer-learning-rate 0.7", 0.7),
    "outer_momentum": ("--outer-momentum 0.4", 0.4),
    "error_feedback": ("--error-feedback", True),
    "weighting": ("--weighting samples", "samples"),
    "data": ("--data celeba", "celeba"),
    "data_root": ("--data-root sets", Path("sets")),
    "image_size": ("--image-size 16", 16),
    "channels": ("--channels 3", 3),
    "subset": ("--subset 500", 500),
    "conditional": ("--conditional", True),
    "guidance": ("--guidance 2", 2.0),
    "final_samples": ("--samples 100 --samples 200", (100, 200)),
    "sampler": ("--sampler dpm", "dpm"),
    "sampler_steps": ("--sampler-steps 12", 12),
    "inception": ("--fid", True),
    "insecure_plain_average": ("--insecure-plain-average", "below-floor"),
}


class CaughtError(Exception):
    """Instead of a study."""


def taken(monkeypatch: pytest.MonkeyPatch, *words: str) -> StudySettings:
    kept: list[StudySettings] = []

    def instead(settings: StudySettings, *_: object) -> None:
        kept.append(settings)
        raise CaughtError

    monkeypatch.setattr(study, "run_study", instead)
    result = CliRunner().invoke(app, ["experiment", "--out", "nowhere", *words])
    assert isinstance(result.exception, CaughtError), result.output
    return kept[0]


def test_every_option_is_a_setting_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*(option.setting for option in _SETTINGS), "insecure_plain_average"] == list(GIVEN)
    settings = taken(monkeypatch, *(word for words, _ in GIVEN.values() for word in words.split()))
    assert {name: getattr(settings, name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}


def test_without_options_it_is_the_default_study(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch) == StudySettings()


def test_options_win_over_a_file_and_a_file_over_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.toml").write_text('preset = "smoke"\nepochs = 9\nbatch_size = 7\n')
    settings = taken(monkeypatch, "--config", str(tmp_path / "study.toml"), "--epochs", "4", "--no-fid")
    assert (settings.name, settings.epochs, settings.batch_size, settings.inception) == ("smoke", 4, 7, False)
