"""Whole studies on made images: real rounds, a kill in the middle, two processes, and every way to get it wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedddpm.data.grey_summary import GreySummary
from fedddpm.errors import ConfigError, DataError
from fedddpm.experiment.design.plan import RunPlan
from fedddpm.experiment.design.presets import preset
from fedddpm.experiment.design.settings import StudySettings, build
from fedddpm.experiment.results import RunRecord, StudyResults, read_results, write_results
from fedddpm.experiment.study import Place, run_study
from fedddpm.generation.networks import load_network
from fedddpm.model.model_files import read_architecture

SIZE, CLASSES = 16, 3


class Quiet:
    """Hears everything and remembers the runs."""

    def __init__(self) -> None:
        self.greys: list[str] = []
        self.runs: list[str] = []
        self.done: list[float] = []

    def images(self, greys: GreySummary) -> None:
        self.greys.append(greys.sentence)

    def step(self, what: str, done: int, total: int) -> None:
        pass

    def run(self, plan: RunPlan, number: int, total: int) -> None:
        self.runs.append(plan.name)

    def progress(self, rounds_done: float, rounds_total: int, what: str, share: float) -> None:
        self.done.append(rounds_done / rounds_total)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose class is the place of a bright bar."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 150), ("test", 60)):
        labels = np.arange(count) % CLASSES
        images = rng.integers(0, 60, (count, SIZE, SIZE))
        for image, label in zip(images, labels, strict=True):
            image[5 * label : 5 * label + 4] += 180
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, **arrays)
    return path


def settings_for(source: Path, **changes: object) -> StudySettings:
    small: dict[str, object] = {
        "data": str(source),
        "subset": None,
        "batch_size": 16,
        "round_samples": 12,
        "final_samples": (24,),
        "classifier_steps": 5,
    }
    return build(preset("smoke"), small, changes)


def study(data: Path, folder: Path, workers: int = 1, **changes: object) -> StudyResults:
    place = Place(folder, folder.parent / "cache", workers, "cpu", command="a test")
    return run_study(settings_for(data, **changes), place, Quiet())


def by_method(results: StudyResults) -> dict[str, RunRecord]:
    return {run.method: run for run in results.runs}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of FULL, UDEC and the baseline."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    study(data, folder, ema_decay=0.5)
    return folder


def test_every_run_is_there_with_rounds_scores_and_pictures(finished: Path) -> None:
    runs = by_method(read_results(finished))
    assert {name: run.aggregation for name, run in runs.items()} == {
        "FULL": "secure",
        "UDEC": "secure",
        "centralised": "none",
    }
    for run in runs.values():
        assert run.done
        assert [record.round for record in run.rounds] == [0, 1]
        assert run.rounds[-1].loss < run.rounds[0].loss
        for record in run.rounds:
            assert record.measured is not None
            assert record.grid is not None
            assert (finished / record.grid).read_bytes().startswith(b"\x89PNG")
            assert record.measured.pooled.label == "FD (N = 12)"
        assert all(one.pooled.kid is not None and one.pooled.floor > 0 for one in run.final)
    assert sum(member.images for member in runs["FULL"].members) == 150
    assert sum(sum(member.labels) for member in runs["FULL"].members) == 150
    assert runs["FULL"].members == runs["UDEC"].members
    assert (finished / "report.html").stat().st_size > 20_000


def test_parts_that_are_never_shared_differ_and_shared_ones_do_not(finished: Path) -> None:
    from fedddpm.experiment.runs.site import model_file
    from fedddpm.model.partition import flatten

    for method, local in (("full", ()), ("udec", ("encoder", "bottleneck"))):
        run = next((finished / "runs").glob(f"{method}-*"))
        first, second = (load_network(model_file(run / f"site-00{index}", 2), "model") for index in (1, 2))
        for part in ("encoder", "bottleneck", "decoder"):
            same = np.array_equal(flatten(first, (part,)), flatten(second, (part,)))
            assert same == (part not in local), (method, part)


def test_scores_by_institution_stand_only_where_networks_differ(finished: Path) -> None:
    runs = by_method(read_results(finished))
    assert set(runs["UDEC"].final[0].clients) == {"site-001", "site-002", "site-003"}
    assert runs["FULL"].final[0].clients == {}
    assert [one.epochs for one in runs["centralised"].final] == [1, 2]


def test_the_planned_traffic_is_the_papers_count(finished: Path) -> None:
    runs = by_method(read_results(finished))
    sizes = runs["FULL"].parameters
    whole, decoder = sum(sizes.values()), sizes["decoder"]
    assert runs["FULL"].planned_traffic == 2 * 3 * 2 * whole
    assert runs["UDEC"].planned_traffic == 3 * (whole + (2 * 2 - 1) * decoder)
    assert runs["centralised"].planned_traffic == 0


def test_a_finished_study_trains_nothing_again(data: Path, finished: Path) -> None:
    before, watcher = read_results(finished), Quiet()
    place = Place(finished, finished.parent / "cache", device="cpu", command="another command")
    again = run_study(settings_for(data, ema_decay=0.5), place, watcher)
    assert watcher.greys == [before.greys]
    assert before.greys.startswith("grey values 0 to 239 of 0..255, mean ")
    assert before.greys in (finished / "results.md").read_text()
    assert watcher.runs == []
    assert again.runs == before.runs


def test_weights_are_those_that_the_settings_name(data: Path, finished: Path, tmp_path: Path) -> None:
    """By samples in every preset; equal where somebody says so."""
    (full,) = (run for run in read_results(finished).runs if run.method == "FULL")
    most = max(member.images for member in full.members)
    by_samples = sum(max(1, round(65535 * member.images / most)) for member in full.members)
    assert [record.sums["full"].weight for record in full.rounds] == [by_samples] * 2
    assert by_samples < 3 * 65535
    few = {"methods": ("FULL",), "round_samples": 0, "final_samples": (), "weighting": "equal", "rounds": 1}
    (equal,) = study(data, tmp_path / "equal", **few).runs
    assert equal.rounds[0].sums["full"].weight == 3 * 65535


def test_a_study_from_before_the_setting_goes_on_by_samples(data: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(finished, folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"].pop("weighting") == "samples"
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match="weighting was 'samples', is 'equal'"):
        study(data, folder, ema_decay=0.5, weighting="equal")
    assert study(data, folder, ema_decay=0.5).runs == read_results(finished).runs


def test_a_folder_of_another_study_is_refused(data: Path, finished: Path) -> None:
    before = (finished / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"other settings \(ema_decay was 0.5, is 0.25; rounds was 2, is 3\)"):
        study(data, finished, ema_decay=0.25, rounds=3)
    assert (finished / "results.json").read_bytes() == before


def test_without_masks_the_models_are_the_same_to_the_last_bit_and_marked(data: Path, tmp_path: Path) -> None:
    few: dict[str, object] = {"methods": ("UDEC",), "round_samples": 0, "final_samples": (), "grid": 0}
    secure = study(data, tmp_path / "secure", **few)
    plain = study(data, tmp_path / "plain", **few, insecure_plain_average="always")
    hashes = [[record.model_hash for record in results.runs[0].rounds] for results in (secure, plain)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 2
    assert [results.runs[0].aggregation for results in (secure, plain)] == ["secure", "plain"]
    assert not secure.notes
    assert "INSECURE" in plain.notes[0]
    for name in ("report.html", "results.md"):
        assert "INSECURE" in (tmp_path / "plain" / name).read_text()
        assert "INSECURE" not in (tmp_path / "secure" / name).read_text()


def test_two_workers_come_to_the_same(data: Path, tmp_path: Path) -> None:
    few: dict[str, object] = {"methods": ("UDEC",), "round_samples": 0, "final_samples": (), "rounds": 1}
    one = study(data, tmp_path / "one", **few).runs[0].rounds[0]
    two = study(data, tmp_path / "two", workers=2, **few).runs[0].rounds[0]
    assert two.loss == pytest.approx(one.loss, rel=1e-4)  # another number of threads may round differently
    assert two.client_losses == pytest.approx(one.client_losses, rel=1e-4)


def test_a_study_killed_in_a_round_goes_on_and_ends_the_same(data: Path, tmp_path: Path) -> None:
    few = 'preset = "smoke"\nmethods = ["UDEC"]\nbits = [6]\nrounds = 3\nround_samples = 0\nfinal_samples = []\n'
    few += "batch_size = 4\n"
    config = tmp_path / "study.toml"
    config.write_text(f'{few}data = "{data}"\nsubset = 150\n')

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fedddpm", "experiment", "--config", str(config), "--out", str(folder)]
        command += ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
        with folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    results = tmp_path / "killed" / "results.json"
    while not (results.exists() and read_results(tmp_path / "killed").runs):
        assert killed.poll() is None, (tmp_path / "killed.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    rounds = len(read_results(tmp_path / "killed").runs[0].rounds)
    assert 1 <= rounds <= 2
    again = start(tmp_path / "killed")
    for process, name in ((whole, "whole"), (again, "killed")):
        assert process.wait(timeout=120) == 0, (tmp_path / f"{name}.log").read_text()
    ends = [read_results(tmp_path / name).runs[0] for name in ("whole", "killed")]
    assert [record.model_hash for record in ends[0].rounds] == [record.model_hash for record in ends[1].rounds]
    assert ends[0].rounds[-1].client_losses == ends[1].rounds[-1].client_losses
    architecture = read_architecture(next((tmp_path / "killed").glob("runs/*/site-001/model-0003.safetensors")))
    assert (architecture.preset, architecture.image_size) == ("tiny", SIZE)


class StoppedError(Exception):
    """The study is interrupted."""


class StopAfterOneRound(Quiet):
    """Interrupts in the second round."""

    def progress(self, rounds_done: float, rounds_total: int, what: str, share: float) -> None:
        if rounds_done > 1:
            raise StoppedError


def test_a_sum_too_large_for_its_ring_is_made_again_in_the_widest(data: Path, tmp_path: Path) -> None:
    few: dict[str, object] = {"methods": ("FULL",), "round_samples": 0, "final_samples": (), "grid": 0, "bits": (6,)}
    few["first_bits"] = 16
    settings, place = settings_for(data, **few), Place(tmp_path / "study", tmp_path / "cache", device="cpu")
    with pytest.raises(StoppedError):
        run_study(settings, place, StopAfterOneRound())
    half = read_results(place.folder)
    (first,) = half.runs[0].rounds
    known = first.sums["full"]
    tiny = first.model_copy(update={"sums": {"full": known.model_copy(update={"norm": known.norm / 1000})}})
    write_results(place.folder, half.model_copy(update={"runs": [half.runs[0].model_copy(update={"rounds": [tiny]})]}))
    first, second = run_study(settings, place, Quiet()).runs[0].rounds
    size = sum(half.runs[0].parameters.values())
    assert (first.wrapped, second.wrapped) == (0, 1)
    assert first.payload_down == pytest.approx(3 * 2 * size, rel=0.02)  # 16 bits while nothing is known
    assert second.payload_down == 3 * 4 * size
    assert second.payload_up == pytest.approx(3 * (4 + 6 / 8) * size, rel=0.02)  # both attempts
    assert second.loss < first.loss
    assert "was not used in round 2" in (place.folder / "report.html").read_text()


def test_error_feedback_is_the_same_after_an_interruption(data: Path, tmp_path: Path) -> None:
    few: dict[str, object] = {"methods": ("UDEC",), "round_samples": 0, "final_samples": (), "grid": 0}
    few |= {"bits": (8,), "first_bits": 16}
    whole = study(data, tmp_path / "whole", **few, error_feedback=True).runs[0].rounds
    place = Place(tmp_path / "halves", tmp_path / "cache", device="cpu")
    settings = settings_for(data, **few, error_feedback=True)
    with pytest.raises(StoppedError):
        run_study(settings, place, StopAfterOneRound())
    halves = run_study(settings, place, Quiet()).runs[0].rounds
    assert [record.model_hash for record in halves] == [record.model_hash for record in whole]
    updates = list((tmp_path / "whole").glob("runs/*/site-*/update.safetensors"))  # of the second round
    assert len(updates) == 3
    assert all(load_file(update)["feedback"].any() for update in updates)


def test_class_conditional_institutions_share_the_label_embedding(data: Path, tmp_path: Path) -> None:
    from fedddpm.experiment.runs.site import model_file

    few: dict[str, object] = {"methods": ("FULL",), "rounds": 1, "final_samples": (), "round_samples": 0}
    results = study(data, tmp_path / "study", **few, conditional=True, guidance=2.0)
    run = tmp_path / "study" / "runs" / results.runs[0].name
    tables = [dict(load_network(model_file(run / f"site-00{i}", 1), "model").named_parameters()) for i in (1, 2, 3)]
    embeddings = [table["encoder.label.weight"].detach().numpy() for table in tables]
    assert embeddings[0].shape[0] == CLASSES + 1
    assert np.array_equal(embeddings[0], embeddings[1])
    assert np.array_equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"institutions": (16,), "final_samples": (64,)}, DataError, "150 images do not go round 16 institutions"),
        ({"institutions": (2,)}, ConfigError, "refuses FULL with K = 2"),
        ({"data": "no-such-set"}, DataError, "does not exist"),
        ({"inception": True, "weights": True}, ConfigError, "weights"),
        ({"image_size": 20}, DataError, "16x16, not 20x20"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(
    data: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    weights = tmp_path / "none.pth" if changes.pop("weights", False) else None
    place = Place(tmp_path / "study", tmp_path / "cache", device="cpu", weights=weights)
    with pytest.raises(error, match=message):
        run_study(settings_for(data, **changes), place, Quiet())
    assert not (tmp_path / "study" / "runs").exists()


def test_conditional_training_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (100, SIZE, SIZE)).astype(np.uint8))
    place = Place(tmp_path / "study", tmp_path / "cache", device="cpu")
    with pytest.raises(DataError, match="needs labels"):
        run_study(settings_for(path, conditional=True), place, Quiet())
    with pytest.raises(DataError, match="label skew needs labels"):
        run_study(settings_for(path), place, Quiet())


def test_results_are_plain_json_with_the_settings(finished: Path) -> None:
    raw = json.loads((finished / "results.json").read_text())
    assert raw["settings"]["rounds"] == 2
    assert raw["command"] == "a test"
    assert raw["nets"]
    assert "accuracy" in raw["nets"][0] or "%" in raw["nets"][0]
