"""The book of rounds through a real aggregator: table, pictures, and what happens when they cannot be written."""

import csv
import logging
import threading

import pytest
from PIL import Image

from fedddpm import SamplesOptions
from fedddpm.cli.status import status_rows
from fedddpm.files.atomic import load_tensors
from fedddpm.generation import round_pictures
from fedddpm.model.ema import average_file
from fedddpm.monitoring.rounds_table import RoundsTable
from fedddpm.rounds import round_book
from fedddpm.rounds.participation import Participation
from fedddpm.state import secret
from fedddpm.state.report import read_state
from fedddpm.training.checkpoint import fingerprint
from fedddpm.transport.connection import Connection
from fedddpm_protocol.agreement.methods import Method

A, B, C, D = (f"hospital-{letter}" for letter in "abcd")
FEW = SamplesOptions(count=4, steps=2)


def state_of(fed, member=A):
    return fed.folder / f"state-{member}"


def table_of(fed, member=A):
    with (state_of(fed, member) / "rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def hashes_of(fed, member):
    """Of the newest network, and of its average."""
    file = read_state(state_of(fed, member)).runs[-1].model
    tensors = [load_tensors(path)[0] for path in (file, average_file(file))]
    return [fingerprint((), [one[name] for name in sorted(one)]) for one in tensors]


def pictures_of(fed, member=A):
    folder = state_of(fed, member) / "samples"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_table_says_what_the_report_says(federation):
    fed = federation()
    fed.start_run(Method.UDEC, 2, clip_norm=0.5, learning_rate=1e-3)
    fed.together(samples=FEW)
    for member in fed.members:
        rows, lines = table_of(fed, member), fed.rounds_of(member)
        assert [row["round"] for row in rows] == ["1", "2"]
        for row, line in zip(rows, lines, strict=True):
            same = ("loss_before", "loss_after", "mean_loss_before", "mean_loss_after", "share", "cosine")
            assert [float(row[name]) for name in same] == [line[name] for name in same]
            assert (row["run"], row["attempt"], row["took_part"]) == (line["run"], "1", "true")
            assert (row["survivors"], row["cohort"]) == ("3", "3")
            assert int(row["images"]) == line["samples"]
            assert (row["steps"], float(row["clip_norm"])) == ("2", 0.5)
            assert int(row["images_seen"]) >= int(row["images"])
            assert float(row["seconds"]) == pytest.approx(line["seconds"], abs=1e-3)
            assert 0 < float(row["train_seconds"]) < float(row["seconds"])
            assert float(row["train_loss"]) > 0
            expected = min(1, float(row["clip_norm"]) / float(row["norm"]))
            assert float(row["clip_factor"]) == pytest.approx(expected, rel=1e-3)
            assert [int(row[f"bytes_{way}"]) for way in ("up", "down")] == [
                line["traffic"][f"bytes_{way}"] for way in ("up", "down")
            ]
        run = read_state(state_of(fed, member)).runs[-1]
        assert sum(int(row["bytes_up"]) for row in rows) == run.bytes_up
        assert sum(int(row["bytes_down"]) for row in rows) == run.bytes_down
        assert (state_of(fed, member) / "rounds.csv").stat().st_mode & 0o077 == 0


def test_every_round_has_the_same_pictures_grown_clearer(federation):
    fed = federation()
    fed.start_run(Method.UDEC, 3, learning_rate=1e-3)
    fed.together(samples=SamplesOptions(count=4, steps=2, every=2))
    for member in fed.members:
        assert pictures_of(fed, member) == ["round-0002.png", "round-0003.png"]  # each second one, and the last
        path = state_of(fed, member) / "samples" / "round-0003.png"
        assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
        with Image.open(path) as image:
            assert image.size == (4 * 10 + 2, 12)  # 8 pixels and a margin of 2
    fed.start_run(Method.FULL, 1)
    fed.together(samples=FEW)
    assert pictures_of(fed) == ["round-0001.png", "run-udec/round-0002.png", "run-udec/round-0003.png"]
    assert [row["run"] for row in table_of(fed)] == ["run-udec"] * 3 + ["run-full"]


def test_whoever_sat_out_has_a_line_and_a_picture_of_the_newest_round_only(federation):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 3, join_s=10)
    fed.together(1, samples=FEW)
    fed.together(1, members=[A, B, C], samples=FEW)
    fed.together_after(D, 2, samples=FEW)
    rows = table_of(fed, D)
    assert [(row["round"], row["took_part"], row["steps"]) for row in rows] == [
        ("1", "true", "2"),
        ("2", "false", ""),
        ("3", "true", "2"),
    ]
    assert rows[1]["mean_loss_after"] == table_of(fed, A)[1]["mean_loss_after"]
    assert pictures_of(fed, A) == ["round-0001.png", "round-0002.png", "round-0003.png"]
    state = fed.folder / f"state-{A}"
    shown = dict(status_rows(state, None))
    assert shown["newest picture"] == str(state / "samples" / "round-0003.png")
    assert shown["rounds in figures"] == str(state / "rounds.csv")


def test_training_does_not_notice_the_pictures(federation, monkeypatch):
    """With the same secrets at home, rounds with and without pictures come to the same model."""
    monkeypatch.setattr(secret, "_secret", lambda state: state.fact("member").ljust(32, b"."))
    models = []
    for count in (4, 0):
        fed = federation()
        fed.start_run(Method.UDEC, 2, bits=32, first_bits=32, learning_rate=1e-3)
        fed.together(samples=SamplesOptions(count=count, steps=2))
        models.append([hashes_of(fed, member) for member in fed.members])
        assert bool(pictures_of(fed)) == bool(count)
        fed.kill()
        fed.folder.rename(fed.folder.with_name(f"{fed.folder.name}-{count}"))
        fed.folder.mkdir()
    assert models[0] == models[1]


def test_nothing_is_sent_while_rounds_are_told(federation, monkeypatch):
    told, sent = threading.local(), []
    tell, stream = round_book.RoundBook.tell, Connection._stream

    def watched_tell(book):
        told.now = True
        tell(book)
        told.now = False

    def watched_stream(connection, method, path, **request):
        sent.append((getattr(told, "now", False), b"\x89PNG" in (request.get("content") or b"")))
        return stream(connection, method, path, **request)

    monkeypatch.setattr(round_book.RoundBook, "tell", watched_tell)
    monkeypatch.setattr(Connection, "_stream", watched_stream)
    fed = federation()
    fed.start_run(Method.UDEC, 1)
    fed.together(samples=FEW)
    assert pictures_of(fed) == ["round-0001.png"]
    assert len(sent) > 20
    assert not any(now or inside for now, inside in sent)


def test_a_disk_that_takes_neither_table_nor_picture_stops_no_round(federation, caplog):
    fed = federation()
    for member in fed.members:
        for name in ("samples", "rounds.csv"):  # of the wrong kind: even root cannot write there
            (state_of(fed, member) / name).mkdir(parents=True)
            (state_of(fed, member) / name / "keep").touch()
        (state_of(fed, member) / "samples" / "keep").unlink()
        (state_of(fed, member) / "samples").rmdir()
        (state_of(fed, member) / "samples").touch()
    fed.start_run(Method.UDEC, 3)
    with caplog.at_level(logging.WARNING, "fedddpm"):
        ended = fed.together(samples=FEW)
    assert all(summary.took_part for rounds in ended.values() for summary in rounds)
    assert all(len(rounds) == 3 for rounds in ended.values())
    for what in ("rounds.csv could not be written", "no pictures of this round"):
        said = [text for text in caplog.messages if what in text]
        assert len(said) == len(fed.members), said  # once for each institution, not once a round
        assert all("this is said once" in text for text in said)


class Killed(BaseException):
    """Ends a process at once."""


def killed(*_, **__):
    raise Killed


def test_a_kill_loses_no_line_and_no_picture(federation, monkeypatch):
    """Killed after the new network is in place, before anything was said of the round."""

    fed = federation()
    fed.start_run(Method.UDEC, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Participation, "_summarize", killed)
        with pytest.raises(Killed):
            fed.together(1, samples=FEW)
    assert not (state_of(fed) / "rounds.csv").exists()
    fed.together(samples=FEW)
    for member in fed.members:
        rows = table_of(fed, member)
        assert [(row["round"], row["took_part"], row["steps"]) for row in rows] == [
            ("1", "true", "2"),
            ("2", "true", "2"),
        ]
        assert all(row["mean_loss_after"] and row["train_loss"] and row["norm"] for row in rows)
        assert len(fed.rounds_of(member)) == 1  # what is appended has lost its line
        assert "round-0001.png" in pictures_of(fed, member)


def test_a_kill_while_drawing_leaves_no_half_file(federation, monkeypatch):
    fed = federation()
    fed.start_run(Method.UDEC, 2)
    with monkeypatch.context() as patched:
        patched.setattr(round_pictures, "write_atomic", killed)
        with pytest.raises(Killed):
            fed.together(1, samples=FEW)
    assert pictures_of(fed) == []
    fed.together(samples=FEW)
    assert pictures_of(fed) == ["round-0001.png", "round-0002.png"]


def test_a_table_that_was_lost_comes_back_with_the_next_round(federation):
    fed = federation()
    fed.start_run(Method.UDEC, 2)
    fed.together(1, samples=SamplesOptions(count=0))
    (state_of(fed) / "rounds.csv").unlink()
    fed.together(samples=SamplesOptions(count=0))
    assert len(table_of(fed)) == 2
    assert not (state_of(fed) / "samples").exists()


def test_columns_stay_where_they_are(tmp_path):
    RoundsTable(tmp_path).observe([], [])
    assert (tmp_path / "rounds.csv").read_text() == (
        "run,round,attempt,ended,took_part,cohort,survivors,steps,images,images_seen,train_seconds,seconds,train_loss,"
        "loss_before,loss_after,mean_loss_before,mean_loss_after,norm,clip_norm,clip_factor,share,cosine,bytes_up,"
        "bytes_down\n"
    )
