"""Settings, presets and the plan of a study: everything wrong is named before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedddpm.errors import ConfigError
from fedddpm.experiment.design.plan import plan_runs, smallest_sum
from fedddpm.experiment.design.presets import PRESETS, preset
from fedddpm.experiment.design.settings import StudySettings, build, read_settings
from fedddpm_protocol.agreement.methods import assign_parts


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid(name: str) -> None:
    settings = build(preset(name))
    assert settings.name == name
    assert "centralised" in settings.methods or len(settings.bits) > 1
    assert settings.draws_images


def test_the_papers_presets_are_the_papers_settings() -> None:
    fmnist, celeba = build(preset("paper-fmnist")), build(preset("paper-celeba"))
    assert (fmnist.rounds, fmnist.epochs, fmnist.batch_size, fmnist.institutions) == (15, 5, 128, (2, 5, 10))
    assert (celeba.rounds, celeba.epochs, celeba.batch_size, celeba.institutions) == (30, 5, 64, (5,))
    for settings in (fmnist, celeba):
        assert settings.networks == ("paper",)
        assert settings.learning_rate == 1e-4
        assert settings.sampler == "ancestral"
        assert settings.final_samples == (1000, 5000)
        assert set(settings.saving) == {"rescaled", "clipped"}
        assert settings.centralised_epochs == (15,)


def test_every_preset_says_how_it_weighs_institutions() -> None:
    assert build({}).weighting == "equal"
    assert {name: chosen["weighting"] for name, chosen in PRESETS.items()} == dict.fromkeys(PRESETS, "samples")


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"cpu-small.*paper-fmnist.*smoke"):
        preset("cpu-large")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["FULL", "FEDAVG"]}, "methods"),
        ({"rouds": 3}, "'rouds': is unknown"),
        ({"institutions": [1]}, "institutions"),
        ({"institutions": [10_001]}, "institutions"),
        ({"methods": ["FULL", "FULL"]}, "names something twice"),
        ({"guidance": 3.0}, "guidance needs conditional"),
        ({"sampler": "ancestral", "sampler_steps": 20}, "ancestral"),
        ({"subset": 8, "institutions": [6]}, "does not go round 6"),
        ({"rounds": 0}, "rounds"),
        ({"saving": []}, "saving"),
        ({"bits": [8, 9]}, "no ring of 9 bits; known: 4, 6, 8"),
        ({"bits": [8, 8]}, "bits names something twice"),
        ({"first_bits": 0}, "first_bits"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"name": "x"}, change)


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('rounds = 7\nepochs = 2\ndata_root = "sets"\n')
    settings = build(preset("smoke"), read_settings(file), {"epochs": 3, "batch_size": None})
    assert (settings.rounds, settings.epochs, settings.batch_size) == (7, 3, PRESETS["smoke"]["batch_size"])
    assert settings.data_root == tmp_path / "sets"


@pytest.mark.parametrize("text", ["rounds = = 7", "rounds = " + "9" * 10_000, "methods = " + "[" * 100_000])
def test_a_broken_file_is_said_to_be_broken(tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_settings(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("institutions", range(2, 12))
def test_the_smallest_sum_is_what_the_draw_can_give(institutions: int) -> None:
    members = [f"m{index}" for index in range(institutions)]
    draws = [assign_parts(bytes([draw]) * 32, members) for draw in range(64)]
    assert smallest_sum("USPLIT", institutions) == min(len(ids) for draw in draws for ids in draw.values())
    assert smallest_sum("UDEC", institutions) == institutions


@pytest.mark.parametrize(
    ("method", "institutions", "refused"),
    [("FULL", 2, True), ("FULL", 3, False), ("USPLIT", 5, True), ("USPLIT", 6, False), ("UDEC", 2, True)],
)
def test_what_secure_aggregation_refuses_needs_the_switch(method: str, institutions: int, refused: bool) -> None:
    chosen: dict[str, object] = {"methods": [method], "institutions": [institutions]}
    if refused:
        with pytest.raises(ConfigError, match=rf"refuses {method} with K = {institutions}.*insecure-plain-average"):
            plan_runs(build(chosen))
        (plan,) = plan_runs(build(chosen, {"insecure_plain_average": "below-floor"}))
        assert plan.aggregation == "plain"
    else:
        (plan,) = plan_runs(build(chosen, {"insecure_plain_average": "below-floor"}))
        assert plan.aggregation == "secure"
    (always,) = plan_runs(build(chosen, {"insecure_plain_average": "always"}))
    assert always.aggregation == "plain"


def test_the_papers_two_institutions_are_named_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"FULL with K = 2.*USPLIT with K = 5"):
        plan_runs(build(preset("paper-fmnist")))
    plans = plan_runs(build(preset("paper-fmnist"), {"insecure_plain_average": "below-floor"}))
    plain = {(plan.method, plan.institutions) for plan in plans if plan.aggregation == "plain"}
    assert plain == {("FULL", 2), ("USPLIT", 2), ("ULATDEC", 2), ("UDEC", 2), ("USPLIT", 5)}


def test_every_combination_is_one_run_and_the_baseline_takes_no_split() -> None:
    settings = StudySettings(
        methods=("FULL", "centralised"), institutions=(3, 4), splits=("iid", "label-skew"), seeds=(0, 1)
    )
    plans = plan_runs(settings)
    names = [plan.name for plan in plans]
    assert len(set(names)) == len(names) == 2 * 2 * 2 + 2
    assert names[:2] == ["centralised-fast-s0", "centralised-fast-s1"]
    assert "full-k4-label-skew-fast-b8-s1" in names
    assert plans[-1].members == ("site-001", "site-002", "site-003", "site-004")


def test_rings_are_an_axis_of_everything_but_the_baseline() -> None:
    settings = build({"methods": ["FULL", "UDEC", "centralised"], "bits": [32, 4], "seeds": [0, 1]})
    plans = plan_runs(settings)
    assert len({plan.name for plan in plans}) == len(plans) == 2 + 2 * 2 * 2
    assert [plan.bits for plan in plans] == [0, 0] + 2 * [32, 32, 4, 4]
    assert build(preset("rings")).bits == (32, 16, 8, 6, 4)
    rings, small = build(preset("rings")), build(preset("cpu-small"))
    same = ("data", "weighting", "institutions", "splits", "subset", "epochs", "batch_size", "final_samples", "sampler")
    assert all(getattr(rings, name) == getattr(small, name) for name in same)


def test_a_network_is_trained_by_its_recipe_unless_another_is_chosen() -> None:
    usual = build({"networks": ["lean", "fast"]})
    assert [(usual.recipe_for(name), usual.rate_for(name)) for name in usual.networks] == [
        ("modern", 4e-3),
        ("paper", 1e-4),
    ]
    chosen = build({"recipe": "paper", "learning_rate": 0.01})
    assert (chosen.recipe_for("lean"), chosen.rate_for("lean")) == ("paper", 0.01)
    with pytest.raises(ConfigError, match="recipe"):
        build({"recipe": "newest"})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"methods": ["UDEC", "centralised"], "outer_momentum": 0.4}, "goes with FULL or TURN, and neither is studied"),
        ({"outer_momentum": 0.95}, "outer_momentum"),
        ({"outer_learning_rate": 1.5}, "outer_learning_rate"),
        ({"methods": ["TURN"], "rounds": 2}, "with TURN a run has 3 rounds at least"),
        ({"methods": ["UDEC", "TURN"], "error_feedback": True}, "error_feedback is not made up for with TURN"),
        ({"methods": ["TURN"], "ema_decay": 0.9}, "averages stay at home"),
    ],
)
def test_methods_that_cannot_be_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(settings)
