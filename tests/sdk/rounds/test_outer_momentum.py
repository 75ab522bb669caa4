"""Rounds with outer momentum: everybody derives both models, comes back to them, and ends with the averaged one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.support.federation import aggregator

from fedddpm.errors import TransportError
from fedddpm.generation.networks import load_network, newest_network
from fedddpm.identity import Identity
from fedddpm.model.partition import flatten
from fedddpm.rounds import trust
from fedddpm.rounds.model_store import outer_file
from fedddpm.rounds.run_history import RunHistory
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ProblemError
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method

# Where each part has its turn more can go wrong; FULL is the same with less.
ONE_MODEL = [pytest.param(Method.FULL, marks=pytest.mark.soak), Method.TURN]


def averaged_file(fed, member):
    (path,) = (fed.folder / f"state-{member}").glob("*.outer.safetensors")
    return path


def network_of(fed, member):
    return flatten(newest_network(fed.folder / f"state-{member}"), MODEL_PARTS)


def averaged_of(fed, member):
    return flatten(load_network(averaged_file(fed, member), "model"), MODEL_PARTS)  # an ordinary model file


def all_alike(vectors):
    return all(np.array_equal(vector, vectors[0]) for vector in vectors)


@pytest.mark.parametrize("method", ONE_MODEL)
def test_a_run_looks_ahead_and_ends_with_the_averaged_model(federation, method):
    fed = federation("abc")
    fed.start_run(method, 4, outer_momentum=0.5)
    for _ in range(3):
        fed.together(1)
        averaged = [averaged_of(fed, member) for member in fed.members]
        assert all_alike(averaged)
        assert not np.array_equal(network_of(fed, fed.members[0]), averaged[0])
    fed.together(1)
    assert all_alike([network_of(fed, member) for member in fed.members])
    assert not list(fed.folder.glob("state-*/*.outer.safetensors"))  # the network is the averaged model now
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


def lose_in_the_last_round(monkeypatch, name):
    """The file ``name`` of the position is gone when the second round's result is taken, at the first institution."""
    original, lost = RunHistory.advance, []

    def advance(history, position, *arguments):
        path = history._state.path / name(position)
        if position.next_round == 1 and not lost and path.exists():
            lost.append(path)
            path.unlink()
        return original(history, position, *arguments)

    monkeypatch.setattr(RunHistory, "advance", advance)
    return lost


@pytest.mark.parametrize("method", ONE_MODEL)
def test_an_averaged_model_lost_before_the_last_result_costs_a_download_alone(federation, monkeypatch, method):
    fed = federation("abc")
    rounds = 3 if method is Method.TURN else 2
    fed.start_run(method, rounds, outer_momentum=0.5)
    fed.together(1)
    lost = lose_in_the_last_round(monkeypatch, lambda position: outer_file(Path(position.model_file)))
    for _ in range(rounds - 1):
        fed.together(1)
    assert len(lost) == 1
    assert all_alike([network_of(fed, member) for member in fed.members])


@pytest.mark.parametrize("method", [Method.FULL, Method.UDEC])
def test_a_network_lost_before_the_last_result_is_fetched_with_it(federation, monkeypatch, method):
    """No next round would fetch it."""
    fed = federation("abc")
    fed.start_run(method, 2)
    fed.together(1)
    lost = lose_in_the_last_round(monkeypatch, lambda position: position.model_file)
    fed.together(1)
    assert len(lost) == 1
    assert all_alike([fed.shared_vector(member, method) for member in fed.members])


@pytest.mark.parametrize("method", ONE_MODEL)
def test_where_sums_are_kept_no_longer_the_averaged_model_is_taken(federation, monkeypatch, method):
    def gone(api, *arguments):
        raise ProblemError("the sums are kept no longer", status=410, code="removed")

    fed = federation("abc")
    monkeypatch.setattr(FederationApi, "download_opened", gone)
    fed.start_run(method, 4, outer_learning_rate=0.8, outer_momentum=0.5)
    fed.together()
    assert all_alike([network_of(fed, member) for member in fed.members])
    aggregator("verify", "--data", fed.data)


def test_results_that_name_models_as_the_charter_does_not_are_refused(federation, monkeypatch):
    """Whoever was away has no sums to hold a result against, and takes no averaged model where there is to be none."""
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.FULL, 3, join_s=4)
    fed.together(1)
    original = trust.open_result

    def lied(document, roster):
        result = original(document, roster)
        return replace(result, averaged_hash=result.base_model_hash) if result.round == 1 else result

    fed.together(1, members=fed.members[:3])
    monkeypatch.setattr(trust, "open_result", lied)
    with pytest.raises(TransportError, match="names an averaged model, with an outer momentum of 0 in the charter"):
        fed.together(1, members=fed.members[3:])
