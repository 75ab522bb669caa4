"""Rounds with outer momentum: everybody derives both models, comes back to them, and ends with the averaged one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.sdk.support.federation import aggregator

from fedddpm.generation.networks import load_network, newest_network
from fedddpm.identity import Identity
from fedddpm.model.partition import flatten
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method


def averaged_file(fed, member):
    (path,) = (fed.folder / f"state-{member}").glob("*.outer.safetensors")
    return path


def network_of(fed, member):
    return flatten(newest_network(fed.folder / f"state-{member}"), MODEL_PARTS)


def averaged_of(fed, member):
    return flatten(load_network(averaged_file(fed, member), "model"), MODEL_PARTS)  # an ordinary model file


def all_alike(vectors):
    return all(np.array_equal(vector, vectors[0]) for vector in vectors)


@pytest.mark.parametrize("method", [Method.FULL, Method.TURN])
def test_a_run_looks_ahead_and_ends_with_the_averaged_model(federation, method):
    fed = federation("abc")
    fed.start_run(method, 4, outer_momentum=0.5)
    for index in range(4):
        fed.together(1)
        averaged = [averaged_of(fed, member) for member in fed.members]
        assert all_alike(averaged)
        if index < 3:
            assert not np.array_equal(network_of(fed, fed.members[0]), averaged[0])
    assert all_alike([network_of(fed, member) for member in fed.members] + averaged)
    assert all(line["took_part"] for line in fed.rounds_of(fed.members[0]))
    aggregator("verify", "--data", fed.data)


def test_shares_are_those_of_the_mean_and_not_of_the_step(federation):
    """The outer step is larger than the mean; what an institution's part in the mean is does not change by it."""
    fed = federation("abc")
    fed.start_run(Method.FULL, 3, outer_learning_rate=0.5, outer_momentum=0.5)
    for _ in range(3):
        fed.together(1)
    shares = [[fed.rounds_of(member)[index]["share"] for member in fed.members] for index in range(3)]
    assert [sum(line) for line in shares] == pytest.approx([1.0] * 3, abs=0.02)


def test_who_lost_a_model_or_comes_late_takes_both_from_the_aggregator(federation):
    fed = federation("abc")
    fed.start_run(Method.FULL, 4, outer_momentum=0.5)
    fed.together(1)
    averaged_file(fed, fed.members[0]).unlink()
    averaged_file(fed, fed.members[1]).write_bytes(b"damaged")
    fed.together(1)
    assert all_alike([averaged_of(fed, member) for member in fed.members])
    newcomer = Identity.generate("hospital-d")
    newcomer.save(fed.folder / "hospital-d.key")
    shutil.copy(fed.folder / "hospital-a.npz", fed.folder / "hospital-d.npz")
    enrolled = f"hospital-d={newcomer.public_key.hex()}"
    aggregator("federation", "roster", "add", fed.roster, *fed.rooted, "--member", enrolled)
    fed.install()
    everybody = [*fed.members, "hospital-d"]
    last = fed.together(members=everybody)
    assert all("hospital-d" in summary.survivors for summary in last["hospital-d"])
    assert all_alike([averaged_of(fed, member) for member in everybody])
    assert all_alike([network_of(fed, member) for member in everybody])


def test_a_model_of_another_history_is_fetched_again(federation):
    """A whole and valid file, but not the averaged model that the signed results name."""
    fed = federation("abc")
    fed.start_run(Method.FULL, 3, outer_momentum=0.5)
    fed.together(1)
    kept = fed.folder / "kept.safetensors"
    shutil.copy(averaged_file(fed, fed.members[0]), kept)
    fed.together(1)
    shutil.copy(kept, averaged_file(fed, fed.members[0]))
    fed.together(1)
    assert all_alike([network_of(fed, member) for member in fed.members])
