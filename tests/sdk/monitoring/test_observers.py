"""Who is told of rounds: curves in TensorBoard and MLflow, on this machine, and errors that say what to install."""

import importlib.util
import logging
import os
from dataclasses import replace

import pytest
from PIL import Image

from fedddpm import Client
from fedddpm.config import ObserveOptions
from fedddpm.errors import ConfigError
from fedddpm.identity import Identity
from fedddpm.monitoring import mlflow_store, observers
from fedddpm.monitoring.mlflow_store import EXPERIMENT, MlflowStore
from fedddpm.monitoring.observers import open_observers, require_packages
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.round_entry import RoundEntry, RoundObserver
from fedddpm.monitoring.tensorboard_files import TensorBoardFiles
from fedddpm.rounds.round_book import RoundBook
from fedddpm.state.folder import StateFolder
from fedddpm.state.round_notes import RoundNotes

UNKNOWN = dict.fromkeys(RoundEntry.__dataclass_fields__)
ENTRY = RoundEntry(
    **{**UNKNOWN, "run": "run-1", "round": 1, "ended": "2026-01-02T03:04:05+00:00", "took_part": True}
    | {"train_loss": 0.5, "survivors": 3, "bytes_up": 10, "bytes_down": 20}
)
NEXT = replace(ENTRY, round=2, train_loss=0.25)
FIGURES = {"took_part": 1.0, "survivors": 3.0, "train_loss": 0.5, "bytes_up": 10.0, "bytes_down": 20.0}


class Scribe(RoundObserver):
    """Writes down what it is told."""

    def __init__(self, name="scribe", fails=0):
        self.name, self.fails, self.heard = name, fails, []

    def observe(self, entries, new):
        if self.fails:
            self.fails -= 1
            raise OSError("the cable was pulled")
        self.heard.append(([entry.round for entry in entries], [entry.round for entry in new]))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grid.png"
    Image.new("L", (6, 4), 128).save(path)
    return path


def without(monkeypatch, *names):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else found(name))


def test_what_is_not_known_is_no_point_of_a_curve():
    assert ENTRY.figures == FIGURES


@pytest.mark.parametrize(("extra", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_said_with_its_extra_before_anything_starts(extra, package, tmp_path, monkeypatch):
    without(monkeypatch, package)
    require_packages(ObserveOptions())
    with pytest.raises(ConfigError, match=rf"{extra} needs packages.*{package}.*pip install 'fedddpm-sdk\[{extra}\]'"):
        require_packages(ObserveOptions(**{extra: tmp_path}))
    Identity.generate("a").save(tmp_path / "a.key")
    with pytest.raises(ConfigError, match=rf"fedddpm-sdk\[{extra}\]"):
        Client(
            aggregator_url="http://127.0.0.1:9",
            identity=tmp_path / "a.key",
            federation_root=bytes(32),
            data="nowhere",
            state_dir=tmp_path / "state",
            observe={extra: str(tmp_path)},
        )


def test_the_table_is_always_told_and_others_by_name(tmp_path):
    with open_observers(ObserveOptions(), tmp_path, "a") as told:
        assert [one.name for one in told] == ["rounds.csv"]
    options = ObserveOptions(tensorboard=tmp_path / "tb", mlflow="https://u:secret@here.example/x", allow_remote=True)
    with open_observers(options, tmp_path, "a") as told:
        assert [one.name for one in told] == ["rounds.csv", f"tensorboard {tmp_path / 'tb'}", "mlflow https"]
    assert list(tmp_path.iterdir()) == []  # nothing is loaded or written before there is a round


def test_an_observer_that_fails_is_told_again_and_disturbs_no_other(tmp_path, monkeypatch, caplog):
    flaky, steady = Scribe("flaky", fails=2), Scribe("steady")
    said = []
    with StateFolder(tmp_path, bytes(32), "a") as state:
        reporter = Reporter()
        monkeypatch.setattr(reporter, "warning", lambda text, event="warning": said.append(text))
        book = RoundBook(state, "a", reporter, (flaky, steady))
        for round_ in range(4):
            RoundNotes(state).add("run-1", round_, ended="2026-01-02T03:04:05+00:00")
            book.follow([])
            book.tell()
            book.tell()  # no news: nobody is asked again
        assert steady.heard == [([1], [1]), ([1, 2], [2]), ([1, 2, 3], [3]), ([1, 2, 3, 4], [4])]
        assert flaky.heard == [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [4])]
        assert said == ["flaky could not be written: OSError. Rounds go on; this is said once"]
        late = Scribe("late")
        again = RoundBook(state, "a", reporter, (late, steady))  # after a restart
        again.tell()  # others wait for this institution
        assert late.heard == []
        again.tell_what_is_left()
        again.tell_what_is_left()
        assert late.heard == [([1, 2, 3, 4], [1, 2, 3, 4])]
        assert len(steady.heard) == 4


def test_tensorboard_has_a_curve_for_each_figure(tmp_path, picture):
    pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "tb").mkdir(mode=0o755)  # somebody's who looks at many things with it
    files = TensorBoardFiles(tmp_path / "tb")
    files.observe([ENTRY, NEXT], [ENTRY, NEXT])
    files.show(NEXT, picture)
    files.close()
    read = EventAccumulator(str(tmp_path / "tb" / "run-1"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == set(FIGURES)
    assert [(point.step, point.value) for point in read.Scalars("train_loss")] == [(1, 0.5), (2, 0.25)]
    (image,) = read.Images("samples")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    assert (tmp_path / "tb" / "run-1").stat().st_mode & 0o077 == 0


def mlflow():
    """What makes a client of a store; importing it tells nobody."""
    for package in observers._PACKAGES["mlflow"]:
        pytest.importorskip(package, reason="the extra [mlflow] is not installed")
    return mlflow_store._client


@pytest.mark.filterwarnings("ignore")  # of MLflow itself
@pytest.mark.parametrize("kind", ["folder", pytest.param("file", marks=pytest.mark.soak), "sqlite"])
def test_mlflow_gets_one_run_that_goes_on_after_a_restart(kind, tmp_path, picture, capfd):
    client_of, folder = mlflow(), tmp_path / "ml runs"
    target = {"folder": str(folder), "file": folder.as_uri(), "sqlite": f"sqlite:///{tmp_path / 'own.db'}"}[kind]
    MlflowStore(target, "hospital-a").observe([ENTRY], [ENTRY])
    store = MlflowStore(target, "hospital-a")
    store.observe([ENTRY, NEXT], [NEXT])
    store.show(NEXT, picture)
    store.close()
    client = client_of(f"sqlite:///{tmp_path / 'own.db' if kind == 'sqlite' else folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run-1"
    assert run.data.tags["fedddpm.institution"] == "hospital-a"
    assert set(run.data.metrics) == set(FIGURES)
    points = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/grid.png"]
    kept = tmp_path / "own.db.artifacts" if kind == "sqlite" else folder / "artifacts"
    assert list(kept.rglob("grid.png"))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert capfd.readouterr().err == ""  # a log of JSON lines stays one
    assert logging.getLogger("alembic").level >= logging.WARNING
    assert all(path.stat().st_mode & 0o077 == 0 for path in (kept, tmp_path / "own.db", folder) if path.exists())


@pytest.mark.filterwarnings("ignore")
def test_mlflow_leaves_the_log_as_it_was(tmp_path):
    """Its migrations set up logging for the whole process, and every line would be there twice."""
    mlflow()
    before = (list(logging.getLogger().handlers), logging.getLogger().level)
    MlflowStore(str(tmp_path / "runs"), "a").observe([ENTRY], [ENTRY])
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before


def test_a_password_in_an_address_is_in_no_warning(tmp_path, monkeypatch):
    mlflow()
    said = []
    store = MlflowStore("http://alice:s3cretpw@127.0.0.1:9/mlflow", "a", allow_remote=True)
    with StateFolder(tmp_path, bytes(32), "a") as state:
        reporter = Reporter()
        monkeypatch.setattr(reporter, "warning", lambda text, event="warning": said.append(text))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        book = RoundBook(state, "a", reporter, (store,))
        RoundNotes(state).add("run-1", 0, ended="2026-01-02T03:04:05+00:00")
        book.follow([])
        book.tell()
    (warning,) = said
    assert "mlflow http could not be written: MlflowException" in warning
    assert "s3cretpw" not in warning
    assert "alice" not in warning


@pytest.mark.filterwarnings("ignore")
def test_an_experiment_that_keeps_its_files_elsewhere_is_refused(tmp_path):
    client_of, target = mlflow(), f"sqlite:///{tmp_path / 'own.db'}"
    client_of(target).create_experiment(EXPERIMENT, artifact_location="s3://bucket/pictures")
    with pytest.raises(ConfigError, match=r"keeps its files on another machine.*allow_remote = true"):
        MlflowStore(target, "a").observe([ENTRY], [ENTRY])
    MlflowStore(target, "a", allow_remote=True).observe([ENTRY], [ENTRY])
