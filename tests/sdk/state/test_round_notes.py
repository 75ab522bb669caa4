"""Notes of rounds: merged, durable, in the order in which rounds became known."""

from fedddpm.state.folder import StateFolder
from fedddpm.state.round_notes import RoundNote, RoundNotes


def test_notes_grow_and_outlive_the_process(tmp_path):
    with StateFolder(tmp_path, bytes(32), "a") as state:
        notes = RoundNotes(state)
        assert notes.all() == []
        notes.add("later", 0, steps=3, loss=None)
        notes.add("earlier", 5, steps=1)
        notes.add("later", 0, loss=0.5, took_part=True)
    with StateFolder(tmp_path, bytes(32), "a") as state:
        assert RoundNotes(state).all() == [
            RoundNote("later", 0, {"steps": 3, "loss": 0.5, "took_part": True}),
            RoundNote("earlier", 5, {"steps": 1}),
        ]
