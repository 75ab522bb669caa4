"""How much work lies behind an update, counted before and after a training, and what is too little."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.protocol.support.charters import charter_for
from tests.protocol.support.specs import changed, make_spec
from tests.support.low_floors import with_low_floors

from fedddpm.config import LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import PolicyError
from fedddpm.model.unet import UNet
from fedddpm.training.settings import silent
from fedddpm.updates.local_training import train_update
from fedddpm.updates.work_floor import WorkDone, planned_work, require_enough_work

POLICY = LocalPolicyOptions()
LOW = charter_for(make_spec()).training  # asks for no more than one image and one step


@pytest.mark.parametrize(
    ("steps", "images", "batch", "seen"),
    [
        (1, 100, 128, 100),  # a batch is never more than there is
        (5, 100, 128, 500),
        (4, 100, 30, 100),  # 30, 30, 30, 10
        (5, 100, 30, 130),
        (8, 100, 30, 200),
        (3, 100, 1, 3),
    ],
)
def test_images_are_counted_as_often_as_they_are_seen(steps: int, images: int, batch: int, seen: int) -> None:
    assert WorkDone.of(steps, images, batch) == WorkDone(steps, seen)


def test_a_plan_ends_where_the_first_limit_is() -> None:
    spec = make_spec(epochs=3, max_steps=0, batch_size=10)
    assert planned_work(spec, 25, POLICY) == WorkDone(9, 75)
    assert planned_work(changed(spec, max_steps=5), 25, POLICY) == WorkDone(5, 45)
    own = LocalPolicyOptions(max_steps=4)
    assert planned_work(spec, 25, own) == WorkDone(4, 35)
    assert planned_work(changed(spec, max_steps=5), 25, own) == WorkDone(4, 35)


def test_the_plan_is_what_a_training_does(tmp_path) -> None:
    spec = make_spec(epochs=2, max_steps=5, batch_size=4)
    images = ImageSet(torch.zeros((10, 1, 8, 8), dtype=torch.uint8))
    place = (torch.device("cpu"), with_low_floors(), 5, tmp_path / "training.safetensors", silent)
    update = train_update(UNet(8, 1, "tiny"), spec, (images, images), *place)
    assert WorkDone(update.steps, update.images_seen) == planned_work(spec, 10, POLICY) == WorkDone(5, 18)


ENOUGH = {"epochs": 4, "max_steps": 0, "batch_size": 128}


@pytest.mark.parametrize(
    ("asked", "images", "said"),
    [
        ({}, 31, r"31 images to train on and your policy wants 32 .min_images.*"),
        ({"epochs": 1}, 500_000, ""),
        ({"epochs": 3}, 100, r"3 steps and your policy wants 4 .min_steps."),
        ({"max_steps": 1}, 1000, r"1 steps.*min_steps"),
        ({"batch_size": 1, "max_steps": 127}, 1000, r"127 images seen and your policy wants 128 .min_images_seen."),
        ({"batch_size": 1, "max_steps": 128}, 1000, ""),
        ({}, 32, ""),
    ],
)
def test_too_little_is_told_before_the_training(asked: dict[str, int], images: int, said: str) -> None:
    spec = make_spec(**(ENOUGH | asked))
    if not said:
        return require_enough_work(spec, LOW, images, POLICY)
    with pytest.raises(PolicyError, match=said):
        require_enough_work(spec, LOW, images, POLICY)


def test_one_step_on_few_images_needs_the_institutions_own_word() -> None:
    spec = make_spec(epochs=1, max_steps=1, batch_size=4)
    with pytest.raises(PolicyError):
        require_enough_work(spec, LOW, 40, POLICY)
    require_enough_work(spec, LOW, 40, with_low_floors())


def test_the_charters_floor_holds_where_it_is_higher() -> None:
    spec = make_spec(**ENOUGH)
    with pytest.raises(PolicyError, match=r"39 images.*the charter wants 40 .min_images."):
        require_enough_work(spec, replace(LOW, min_images=40), 39, POLICY)
    few = changed(spec, max_steps=6)
    with pytest.raises(PolicyError, match=r"6 steps and the charter wants 7 .min_steps."):
        require_enough_work(few, replace(LOW, min_steps=7, max_steps=7), 1000, POLICY)
    require_enough_work(few, replace(LOW, min_steps=6, max_steps=6), 1000, POLICY)
