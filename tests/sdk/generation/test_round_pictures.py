"""Pictures after a round: the same noise each time, bounded in time, and no trace in training's random numbers."""

from dataclasses import replace

import pytest
import torch
from tests.sdk.support.federation import make_network

from fedddpm.config import SamplesOptions
from fedddpm.errors import DataError
from fedddpm.generation import round_pictures
from fedddpm.generation.round_pictures import RoundPictures
from fedddpm.model.ema import AverageState, average_file, save_average
from fedddpm.model.model_files import save_model
from fedddpm.model.unet import UNet
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.round_entry import RoundEntry
from fedddpm.state.folder import RunPosition, StateFolder

CPU = torch.device("cpu")
NO_ENTRY = RoundEntry(**dict.fromkeys(RoundEntry.__dataclass_fields__))  # nothing is known of it


class Told(Reporter):
    def __init__(self):
        super().__init__()
        self.notices = []

    def notice(self, text, event="notice", fields=None):
        self.notices.append(text)


@pytest.fixture
def state(tmp_path):
    with StateFolder(tmp_path, bytes(32), "a") as opened:
        yield opened


def reach(state, round_, model=None, *, run="run-1", finished=False, average=None):
    """A round has a result: the network after it is in place."""
    model = model or make_network()
    position = RunPosition(run, "FULL", round_, b"", b"", b"", f"model-{run}-{round_}.safetensors", finished)
    save_model(state.path / position.model_file, model)
    if average is not None:
        save_average(average_file(state.path / position.model_file), model, average)
    state.move_to(position)
    return replace(NO_ENTRY, run=run, round=round_, bytes_up=0, bytes_down=0)


def painter(state, reporter=None, **options):
    return RoundPictures(state, SamplesOptions(**{"count": 4, "steps": 2, **options}), CPU, reporter or Told())


def test_the_same_weights_give_the_same_pictures_and_others_do_not(state):
    first = painter(state).draw(reach(state, 1), 1.0)
    again = painter(state).draw(reach(state, 2), 1.0)
    other = make_network()
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(1.1)
    third = painter(state).draw(reach(state, 3, other), 1.0)
    assert [path.name for path in (first, again, third)] == ["round-0001.png", "round-0002.png", "round-0003.png"]
    assert first.read_bytes() == again.read_bytes() != third.read_bytes()


def test_the_average_is_drawn_from_where_there_is_one(state):
    plain = painter(state).draw(reach(state, 1), 1.0)
    average = AverageState.fresh(make_network())
    averaged = painter(state).draw(reach(state, 2, average=replace(average, vector=average.vector * 1.1)), 1.0)
    assert plain.read_bytes() != averaged.read_bytes()


def test_nobody_else_s_random_numbers_move(state):
    entry = reach(state, 1)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert painter(state).draw(entry, 1.0) is not None
    assert torch.equal(torch.rand(4), expected)


def test_rounds_that_are_not_due_are_left_out(state):
    drawn = [painter(state, every=3).draw(reach(state, round_), 1.0) for round_ in (1, 2, 3, 4)]
    assert [path and path.name for path in drawn] == [None, None, "round-0003.png", None]
    assert painter(state, every=3).draw(reach(state, 5, finished=True), 1.0).name == "round-0005.png"


def test_nothing_is_drawn_of_a_network_that_is_gone_or_before_a_training(state):
    entry = reach(state, 1)
    assert painter(state).draw(entry, None) is None
    reach(state, 2)
    assert painter(state).draw(entry, 1.0) is None
    assert painter(state).draw(replace(entry, run="run-2"), 1.0) is None


def test_what_takes_too_long_is_stopped_early_and_said_once(state, monkeypatch):
    told, steps = Told(), []
    clock = iter(range(0, 10_000, 10))  # each look at it: ten seconds later
    monkeypatch.setattr(round_pictures.time, "monotonic", lambda: float(next(clock)))
    beat = told.vitals.beat
    told.vitals.beat = lambda: steps.append(1) or beat()
    slow = painter(state, told, steps=20, max_share=0.05)
    assert slow.draw(reach(state, 1), 1000.0) is None
    assert len(steps) <= 3
    assert slow.draw(reach(state, 2), 1000.0) is None
    assert len(steps) <= 3  # known by now: not even begun
    assert len(told.notices) == 1
    assert "more than 5 % of the round's training (1000 s)" in told.notices[0]
    assert "max_share" in told.notices[0]
    assert not (state.path / "samples").exists()
    assert slow.draw(reach(state, 3), 1e9) is not None  # a long training leaves room


def test_short_trainings_leave_two_seconds(state):
    assert round_pictures.CHEAP_S == 2
    assert painter(state, max_share=1e-9).draw(reach(state, 1), 0.01) is not None


def test_the_labels_of_a_conditional_network_take_turns(state):
    torch.manual_seed(1)
    assert painter(state).draw(reach(state, 1, UNet(8, 1, "tiny", classes=3)), 1.0) is not None


def test_channels_that_no_picture_shows_are_refused_before_drawing(state, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(round_pictures, "sample_images", None)
    with pytest.raises(DataError, match="a PNG cannot show 2 channels"):
        painter(state).draw(reach(state, 1, UNet(8, 2, "tiny")), 1.0)
