"""Several processes of one institution train together: the result of one, and an end when one ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from local_federation import free_port
from tests.sdk.support import rank_worker
from tests.support.low_floors import IN_WORDS

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError, DataError
from fedddpm.model.partition import PARTS, flatten
from fedddpm.training.distributed import DistributedShare, Place, _require_same
from fedddpm.training.ranks import RankShare
from fedddpm_protocol.agreement.methods import Method

SCRIPT = Path(rank_worker.__file__)


def launch(folder, what):
    """Two ranks; exit code and stderr of each."""
    port, started = str(free_port()), []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, SCRIPT, folder, what]
        environment = os.environ | place | {"OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        return [(process.wait(60), process.stderr.read()) for process in started]
    finally:
        for process in started:
            process.kill()
            process.stderr.close()


def test_two_processes_reach_the_result_of_one_also_after_a_kill(tmp_path):
    (killed, _), (alone, message) = launch(tmp_path, "kill")
    assert killed == -9
    assert alone == 1
    assert "TrainingError" in message
    assert "the same command goes on from the last checkpoint" in message

    (failed, message), (ended, quiet) = launch(tmp_path, "resume")
    assert failed == 1
    assert "StateError: the disk is full" in message
    assert (ended, "Error" in quiet) == (0, False)  # rank 0 has said it

    one = rank_worker.trainer()
    start = torch.from_numpy(flatten(one.model, PARTS))
    weights, average, loss = rank_worker.result(one, one.train())
    way = (weights - start).norm()
    for name, first in (("resumed", rank_worker.KILLED_AT - 1), ("whole", 1)):
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert two["steps"] == list(range(first, 7))
        # Adam turns the rounding of a gradient near zero into a step of any size, so single weights may differ.
        assert (two["weights"] - weights).norm() < 1e-3 * way
        assert (two["average"] - average).norm() < 1e-3 * way
        assert two["loss"] == pytest.approx(loss, abs=1e-5)
    assert json.loads((tmp_path / "short.json").read_text()) == [1, "max_seconds"]


def test_a_whole_federation_with_an_institution_of_two_processes(federation):
    world = federation()
    world.start_run("UDEC", rounds=1)
    leader, *others = world.members
    settings = world.settings(leader)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    words += ["-m", "fedddpm", "participate", "--no-progress", "--rounds", "1", "--device", "cpu", *IN_WORDS]
    for name in ("aggregator_url", "identity", "federation_root", "data", "state_dir"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])]
    with subprocess.Popen(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as crew:
        world.together(1, others)
        said = crew.communicate(timeout=60)[0]
    assert crew.returncode == 0, said
    assert "on cpu and 1 more" in said
    assert said.count("1 round ended since this start") == 1
    decoders = [world.shared_vector(member, Method.UDEC) for member in world.members]
    assert all((decoder == decoders[0]).all() for decoder in decoders)


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
def test_ranks_share_all_rows_once(rows):
    whole = torch.arange(rows)
    pieces = [RankShare(rank, 3).slice(whole) for rank in range(3)]
    assert torch.cat(pieces).equal(whole)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_other_images_are_refused():
    store = dist.HashStore()
    _require_same(DistributedShare(0, 2, store=store, device=torch.device("cpu")), rank_worker.images())
    follower = DistributedShare(1, 2, store=store, device=torch.device("cpu"))
    _require_same(follower, rank_worker.images())
    other = ImageSet(rank_worker.images().images, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(DataError, match="rank 1 has opened other images than rank 0"):
        _require_same(follower, other)


def test_places_and_their_devices(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Place.here() == Place(0, 1, 0)
    assert Place.here().device("cuda:3") == "cuda:3"
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="Start all ranks with torchrun"):
        Place.here()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Place.here() == Place(3, 4, 1)
    assert (Place.here().device("cuda"), Place.here().device("cpu")) == ("cuda:1", "cpu")
    with pytest.raises(ConfigError, match="4 ranks cannot share the device 'cuda:2'"):
        Place.here().device("cuda:2")
