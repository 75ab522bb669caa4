"""An institution's average of the weights, and labels, through rounds with a real aggregator."""

import logging

import numpy as np
import pytest
import torch
from tests.protocol.support.sessions import make_roster
from tests.protocol.support.specs import make_spec
from tests.sdk.support.federation import SIZE, make_network

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import DataError
from fedddpm.generation.networks import newest_network
from fedddpm.model.ema import average_file, load_average
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.state.report import read_state
from fedddpm.training.settings import silent
from fedddpm.updates.local_training import train_update
from fedddpm.updates.update_store import UpdateStore
from fedddpm_protocol.agreement.methods import Method

A, B, C, D = (f"hospital-{letter}" for letter in "abcd")
STEPS = 2  # a round: 11 to 14 images in batches of 8


def average_of(fed, member):
    """(the newest network, its average)."""
    folder = fed.folder / f"state-{member}"
    model = newest_network(folder)
    return flatten(model), load_average(average_file(read_state(folder).runs[-1].model), model)


def average_files(fed, member):
    return sorted(path.name for path in (fed.folder / f"state-{member}").glob("*.ema.safetensors"))


def label_images(fed, classes):
    """Give each member images of two classes of its own."""
    for number, member in enumerate(fed.members):
        path = fed.folder / f"{member}.npz"
        with np.load(path) as arrays:
            images = arrays["images"]
        labels = (number + np.arange(len(images)) % 2) % classes
        np.savez(path, images=images, labels=labels)


def with_classes(classes):
    torch.manual_seed(1)
    return UNet(SIZE, 1, "tiny", classes=classes)


def test_the_label_embedding_is_shared_and_the_average_is_one_s_own(federation):
    fed = federation("abc")
    label_images(fed, 4)
    start = with_classes(4)
    fed.start_run(Method.FULL, 2, network=start, learning_rate=1e-3)
    fed.together()
    rows = [newest_network(fed.folder / f"state-{m}").encoder.label.weight.detach() for m in fed.members]
    assert all(torch.equal(row, rows[0]) for row in rows)
    changed = (rows[0] != start.encoder.label.weight.detach()).any(dim=1)
    assert changed[:4].all()  # whoever saw a class, everybody has its row
    averages = [average_of(fed, member) for member in fed.members]
    assert all(average.updates == 2 * STEPS for _, average in averages)
    assert not np.array_equal(averages[0][1].vector, averages[1][1].vector)
    assert np.array_equal(averages[0][0], averages[1][0])
    assert average_files(fed, A) == ["model-run-full-2.ema.safetensors"]  # older ones are gone


def test_the_average_follows_the_base_and_begins_again_where_it_was_lost(federation, caplog):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 3, join_s=4)
    fed.together(1)
    before, average = average_of(fed, D)
    fed.together(1, members=[A, B, C], learning=LearningOptions(ema_decay=0))
    assert average_files(fed, A) == []
    fed.together(1, members=[D])  # takes the result of the round it sat out
    after, moved = average_of(fed, D)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(moved.vector - average.vector, after - before, atol=1e-6)
    assert moved.updates == average.updates == STEPS
    with caplog.at_level(logging.WARNING, "fedddpm"):
        fed.together_after(D, 2)
    assert sum("average of the weights is missing" in message for message in caplog.messages) == 3
    assert average_of(fed, A)[1].updates == STEPS
    assert average_of(fed, D)[1].updates == 2 * STEPS


def test_images_without_labels_are_told_before_training(federation, caplog):
    fed = federation("abc")
    fed.start_run(Method.FULL, 1, network=with_classes(3))
    with caplog.at_level(logging.INFO, "fedddpm"), pytest.raises(DataError, match="these images have no labels"):
        fed.client(A).participate()
    label_images(fed, 4)
    with caplog.at_level(logging.INFO, "fedddpm"), pytest.raises(DataError, match="the network knows 0 to 2"):
        fed.client(C).participate()
    assert not any("training" in message for message in caplog.messages)


def test_a_stored_update_keeps_its_average(tmp_path):
    spec = make_spec(make_roster(3), Method.UDEC, epochs=2)
    pixels = torch.randint(0, 256, (12, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    store, images = UpdateStore(tmp_path), (ImageSet(pixels), ImageSet(pixels[:4]))
    place = (images, torch.device("cpu"), LocalPolicyOptions(), 5, store.checkpoint, silent)

    def stored(learning, average=None):
        store.save(train_update(make_network(), spec, *place, learning=learning, average=average))
        return store.load(spec.base_model_hash, spec.terms.hash).average

    update = train_update(make_network(), spec, *place, learning=LearningOptions())
    first = stored(LearningOptions())
    assert np.array_equal(first.vector, update.average.vector)
    assert first.updates == 6
    assert stored(LearningOptions(), first).updates == 12
    assert stored(LearningOptions(ema_decay=None)) is None
