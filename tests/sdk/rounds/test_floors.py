"""The institution's own floors hold against what the aggregator signs: nothing is trained, or what came out stays."""

import numpy as np
import pytest
from tests.sdk.support.federation import SIZE

from fedddpm import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.model_files import save_model
from fedddpm.model.unet import architecture_of
from fedddpm.rounds.run_history import RunHistory
from fedddpm.transport.endpoints import SessionApi

A, SEED = "hospital-a", seed_of(1)
ENOUGH = {"epochs": 4, "batch_size": 8}  # of 40 images, of which 36 are trained on: 20 steps


class SentError(Exception):
    """Something left the institution."""


@pytest.fixture
def fed(federation, monkeypatch):
    """A federation whose members have enough images, and of which nothing may leave."""
    made = federation("abc")
    for number, member in enumerate(made.members):
        images = np.random.default_rng(number).integers(0, 256, (40, SIZE, SIZE), dtype=np.uint8)
        np.savez(made.folder / f"{member}.npz", images=images)

    def sent(*arguments):
        raise SentError

    monkeypatch.setattr(SessionApi, "join", sent)
    return made


def theta_0(fed, change=lambda model: None, seed=SEED):
    """A first model on the disk, changed by hand, with the seed that it says it has."""
    model = initial_network(architecture_of(SIZE, 1, "tiny"), SEED)
    change(model)
    save_model(fed.folder / "theta0.safetensors", model, initial_seed=seed)


def start(fed, **settings):
    fed.start_run("UDEC", rounds=1, initial=fed.folder / "theta0.safetensors", **{**ENOUGH, **settings})


def raise_bias(model):
    model.decoder.to_image.bias.data += 0.01


def shrink_last_layer(model):
    model.decoder.to_image.weight.data.mul_(1e-8)


OPEN = {
    **{"min_images": 1, "min_steps": 1, "min_images_seen": 1},
    **{"max_learning_rate": 1, "max_clip_norm": 1e9, "max_small_gradients": 1, "weight_slack": 1e9},
    "allow_weights": True,
}
REFUSED = {  # what is said where this floor alone is up, of a round that is outside of all
    "min_images": "36 images to train on and your policy wants 37 .min_images.",
    "min_steps": "1 steps and your policy wants 4 .min_steps.",
    "min_images_seen": "8 images seen and your policy wants 128 .min_images_seen.",
    "max_learning_rate": "0.1 as the learning rate, your policy allows 0.01",
    "max_clip_norm": "1000.0 as the clip norm, your policy allows 100.0",
    "allow_weights": "begins with weights that somebody made",
    "weight_slack": "decoder.to_image.weight: gain .*, honest is 0.05 to 30",
    "max_small_gradients": "first gradient on this model is below Adam's epsilon",
}


def test_each_floor_alone_stops_a_round_that_reads_images(fed):
    """One step on a model of which it shows the gradient; with all floors down it goes out."""
    theta_0(fed, shrink_last_layer, b"")
    start(fed, max_steps=1, learning_rate=0.1, clip_norm=1000.0)
    for floor, said in REFUSED.items():
        own = {name: value for name, value in OPEN.items() if name != floor}
        if floor == "min_images":
            own[floor] = 37
        with pytest.raises(PolicyError, match=said):
            fed.plain_client(A, policy=LocalPolicyOptions(**own)).participate()
        assert not list((fed.folder / f"state-{A}").glob("update*"))
    with pytest.raises(SentError):
        fed.plain_client(A, policy=LocalPolicyOptions(**OPEN)).participate()


def test_the_defaults_take_part_in_an_ordinary_round(fed):
    theta_0(fed)
    start(fed)
    with pytest.raises(SentError):
        fed.plain_client(A).participate()


@pytest.mark.parametrize(
    ("change", "seed", "said"),
    [
        (raise_bias, b"", "begins with weights that somebody made.*allow_weights"),
        (raise_bias, SEED, "does not follow from the seed.*allow_weights"),
    ],
)
def test_weights_that_somebody_made_need_the_institutions_word(fed, change, seed, said):
    theta_0(fed, change, seed)
    start(fed)
    with pytest.raises(PolicyError, match=said):
        fed.plain_client(A).participate()
    with pytest.raises(SentError):
        fed.plain_client(A, policy=LocalPolicyOptions(allow_weights=True)).participate()


def test_a_training_that_time_ends_below_the_floor_stays_at_home_and_goes_on_later(fed, caplog):
    theta_0(fed)
    start(fed)
    waits = []

    def waited(reporter, text, *more, **named):
        waits.append(text)
        if text.startswith("sitting out"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedddpm.monitoring.reporter.Reporter.waiting", waited)
        with pytest.raises(KeyboardInterrupt):
            fed.plain_client(A, policy=LocalPolicyOptions(max_seconds=1e-9)).participate()
    assert "behind the update are 1 steps and your policy wants 4" in caplog.text
    state = fed.folder / f"state-{A}"
    assert (state / "training.safetensors").exists()
    assert not (state / "update.safetensors").exists()

    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fedddpm.monitoring.reporter.Reporter.training",
            lambda reporter, round_, progress: steps.append(progress.step),
        )
        with pytest.raises(SentError):
            fed.plain_client(A).participate()
    assert steps == list(range(2, 21))


def test_an_update_on_the_disk_is_held_against_the_floors_of_today(fed, caplog):
    theta_0(fed)
    start(fed)
    with pytest.raises(SentError):
        fed.plain_client(A).participate()
    assert (fed.folder / f"state-{A}" / "update.safetensors").exists()

    def waited(reporter, text, *more, **named):
        if text.startswith("sitting out"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedddpm.monitoring.reporter.Reporter.waiting", waited)
        patch.setattr("fedddpm.rounds.participation.require_enough_work", lambda *arguments: None)
        with pytest.raises(KeyboardInterrupt):
            fed.plain_client(A, policy=LocalPolicyOptions(min_steps=21)).participate()
    assert "20 steps and your policy wants 21" in caplog.text


def test_a_base_model_of_a_later_round_is_looked_at_as_well(federation, monkeypatch):
    """A false opened sum may move weights as far as honest ones do, and needs no more to make a trap."""
    fed = federation("abc")
    fed.start_run("UDEC", rounds=2)
    network = RunHistory.network

    def moved(history, position, spec):
        model = network(history, position, spec)
        if spec.round:
            shrink_last_layer(model)
        return model

    monkeypatch.setattr(RunHistory, "network", moved)
    with pytest.raises(PolicyError, match=r"decoder.to_image.weight: gain"):
        fed.together()
    assert [line["round"] for line in fed.rounds_of(A)] == [0]
