"""The classifier, the reference and the scores: what they say, and that they are made once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.sdk.support.evaluated import CLASSES, SIZE, shapes

from fedddpm.data.image_set import ImageSet, to_floats
from fedddpm.errors import CheckpointError, ConfigError, DataError
from fedddpm.evaluation import reference as reference_module
from fedddpm.evaluation.classifier import open_classifier
from fedddpm.evaluation.pixel_rescaling import as_saved
from fedddpm.evaluation.reference import open_reference
from fedddpm.evaluation.scores import score

TRAIN, TEST = shapes(1600, 1), shapes(800, 2)
STEPS = 25


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def net(cache):
    return open_classifier(TRAIN, TEST, cache, steps=STEPS)


@pytest.fixture(scope="module")
def reference(net, cache):
    return open_reference(net, TRAIN, TEST, cache)


class Counting:
    """The same net, counting the images it looks at; beyond ``most`` it is as if the process were killed."""

    def __init__(self, net, most=10**9):
        self.net, self.most, self.seen = net, most, 0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def extract(self, images, on_progress=None):
        if self.seen + len(images) > self.most:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self.net.extract(images, on_progress)


def forbidden(*_):
    raise AssertionError("this was done before")


def test_the_classifier_learns_and_says_how_well(net):
    assert net.accuracy > 0.9
    assert f"{net.accuracy:.1%} of the 800 test images" in net.source
    assert f"{STEPS} steps" in net.source
    assert net.name == f"classifier-{STEPS}-{net.digest[:8]}"
    assert not net.is_inception
    heard = []
    features = net.extract(TEST.images, lambda *told: heard.append(told))
    assert features.shape == (800, net.width)
    assert heard == [(500, 800), (800, 800)]


def test_a_trained_classifier_is_found_again(net, cache):
    again = open_classifier(TRAIN, TEST, cache, steps=STEPS, on_progress=forbidden)
    assert (again.name, again.source, again.digest, again.accuracy) == (net.name, net.source, net.digest, net.accuracy)
    assert (again.extract(TEST.images[:50]) == net.extract(TEST.images[:50])).all()


def test_two_at_once_train_one_classifier(tmp_path):
    train, test, heard = shapes(200, 1), shapes(40, 2), []

    def go(_):
        return open_classifier(train, test, tmp_path, steps=4, on_progress=lambda *told: heard.append(told)).digest

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(go, range(2)))) == 1
    assert len(heard) == 4  # the second one waited, and read


@pytest.mark.parametrize("change", ["steps", "seed", "images"])
def test_another_recipe_or_other_images_are_another_classifier(net, cache, change):
    train = shapes(300, 5) if change == "images" else TRAIN
    steps, seed = (2 if change == "steps" else 3), (1 if change == "seed" else 0)
    heard = []
    other = open_classifier(train, TEST, cache, steps=steps, seed=seed, on_progress=lambda *told: heard.append(told))
    assert heard[-1] == (steps, steps)
    assert other.digest != net.digest


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    open_classifier(shapes(64, 1), shapes(16, 2), tmp_path, steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    train, test = shapes(200, 1), shapes(40, 2)
    first = open_classifier(train, test, tmp_path, steps=2)
    before = open_reference(first, train, test, tmp_path).floor(20)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {file.name.split("-")[0] for file in files} == {"classifier", "features", "statistics", "floor"}
    whole = {file: file.read_bytes() for file in files}
    for file, data in whole.items():
        file.write_bytes(data[: len(data) // 2])
    again = open_classifier(train, test, tmp_path, steps=2)
    assert again.digest == first.digest
    assert open_reference(again, train, test, tmp_path).floor(20) == before
    assert [file.stat().st_size for file in files] == [len(data) for data in whole.values()]
    assert caplog.text.count("made anew") == len(files)


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="--cache"):
        open_classifier(shapes(64, 1), shapes(16, 2), tmp_path / "file", steps=1)


def test_sets_that_no_classifier_can_be_made_of(tmp_path):
    no_labels = ImageSet(TEST.images)
    with pytest.raises(DataError, match="labels"):
        open_classifier(no_labels, TEST, tmp_path)
    with pytest.raises(DataError, match="two classes"):
        open_classifier(TRAIN.subset([0, CLASSES]), TEST, tmp_path)
    with pytest.raises(DataError, match="differ in size"):
        open_classifier(TRAIN, ImageSet(torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(4)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_are_refused(net):
    with pytest.raises(DataError, match="size and channels"):
        net.extract(torch.zeros(2, 1, SIZE + 2, SIZE + 2, dtype=torch.uint8))


def test_a_reference_is_made_once(net, reference, cache):
    floor = reference.floor(400)
    watched = Counting(net)
    again = open_reference(watched, TRAIN, TEST, cache)
    assert again.floor(400) == floor
    assert again.floor(100) == reference.floor(100)  # its images are the first of the four hundred
    assert watched.seen == 0
    assert (again.features == reference.features).all()


def test_a_killed_extraction_goes_on_where_it_was(net, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "_BLOCK", 100)
    monkeypatch.setattr(reference_module, "_SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        open_reference(Counting(net, most=350), TRAIN, TEST, tmp_path)
    watched = Counting(net)
    again = open_reference(watched, TRAIN, TEST, tmp_path)
    assert watched.seen == len(TEST) - 300
    assert (again.features == reference.features).all()


def test_the_floor_falls_with_the_number_of_images(reference):
    floors = [reference.floor(n) for n in (50, 200, 800)]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] > 2 * floors[2] > 0


def test_no_floor_without_enough_real_images(reference):
    with pytest.raises(DataError, match="there are 1600"):
        reference.floor(1601)


def test_scores_rank_real_above_blurred_above_noise(net, reference):
    real = TRAIN.images[:400]
    blurred = torch.nn.functional.avg_pool2d(real.float(), 5, 1, 2).to(torch.uint8)
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scores = [score(net, reference, images) for images in (real, blurred, noise)]
    assert [s.distance for s in scores] == sorted(s.distance for s in scores)
    assert [s.kid for s in scores] == sorted(s.kid for s in scores)
    assert scores[0].distance < 2 * scores[0].floor < scores[1].distance
    assert min(scores[0].precision, scores[0].recall) > 0.7
    assert scores[2].precision < 0.1
    assert {s.label for s in scores} == {"FD (N = 400)"}  # never FID
    assert {s.floor for s in scores} == {reference.floor(400)}


def test_one_class_only_costs_recall_and_not_precision(net, reference):
    one = TRAIN.subset((TRAIN.labels == 0).nonzero()[:, 0].numpy())
    found = score(net, reference, one.images)
    assert found.precision > 0.7 > 0.5 > found.recall


def test_scores_without_companions(net, reference):
    found = score(net, reference, TRAIN.images[:50], companions=False, saving="clipped")
    assert (found.kid, found.kid_std, found.precision, found.recall) == (None,) * 4
    assert found.saving == "clipped"
    assert found.distance == score(net, reference, TRAIN.images[:50]).distance


def test_clipped_saving_loses_everything_below_mid_grey():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_floats(levels, torch.device("cpu"))
    assert torch.equal(as_saved(floats, "rescaled"), levels)
    clipped = as_saved(floats, "clipped").flatten()
    assert clipped[:128].max() == 0
    assert (clipped[128:].diff().int() >= 1).all()
    assert clipped[-1] == 255
    with pytest.raises(ConfigError, match="rescaled, clipped"):
        as_saved(floats, "other")


def test_clipped_saving_is_seen_in_the_score(net, reference):
    floats = to_floats(TRAIN.images[:200], torch.device("cpu"))
    rescaled, clipped = (
        score(net, reference, as_saved(floats, how), companions=False) for how in ("rescaled", "clipped")
    )
    assert clipped.distance > 3 * rescaled.distance
