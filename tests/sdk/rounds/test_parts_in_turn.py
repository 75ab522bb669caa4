"""Parts in turn: each round one part is summed, the others go on at home, and the run ends with one whole model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.sdk.support.federation import aggregator, make_network

from fedddpm import LearningOptions
from fedddpm.generation.networks import load_network, newest_network
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten, manifest
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import coordinates

RUN = "run-turn"


def base_of(fed, member):
    """The file of the institution's base model; there is one, of the round that it stands in."""
    (path,) = (fed.folder / f"state-{member}").glob("*.base.safetensors")
    return path


def parts_at(fed, member):
    network = newest_network(fed.folder / f"state-{member}")
    return {part: flatten(network, (part,)) for part in MODEL_PARTS}


def base_at(fed, member):
    """The base model that an institution holds, by part."""
    whole = load_network(base_of(fed, member), "model")  # an ordinary model file
    return {part: flatten(whole, (part,)) for part in MODEL_PARTS}


def test_each_part_has_its_turn_and_the_others_go_on_at_home(federation):
    fed = federation("abc")
    fed.start_run(Method.TURN, 4)
    first = {part: flatten(make_network(), (part,)) for part in MODEL_PARTS}
    moved = []
    for _ in range(4):
        fed.together(1)
        bases = [base_at(fed, member) for member in fed.members]
        moved.append({part for part in MODEL_PARTS if not np.array_equal(bases[0][part], first[part])})
        assert all(np.array_equal(one[part], bases[0][part]) for one in bases for part in MODEL_PARTS)
        first = bases[0]
        turn = len(moved) - 1
        own = [parts_at(fed, member) for member in fed.members]
        for part in MODEL_PARTS:  # what was summed is everybody's, what was not was trained at home; at the end all is
            same = part == MODEL_PARTS[turn % 3] or turn == 3
            assert all(np.array_equal(one[part], bases[0][part]) == same for one in own), (part, turn)
            assert all(np.array_equal(a[part], b[part]) == same for a, b in itertools.combinations(own, 2))
    assert moved == [{MODEL_PARTS[0]}, {MODEL_PARTS[1]}, {MODEL_PARTS[2]}, {MODEL_PARTS[0]}]
    for line in fed.rounds_of(fed.members[0]):
        assert line["took_part"]
        assert line["mean_loss_before"] > 0, "losses stand in each round's one sum"
        sent = coordinates(manifest(make_network(), (MODEL_PARTS[line["round"] % 3],)))
        first = coordinates(manifest(make_network(), MODEL_PARTS)) if line["round"] == 0 else 0  # theta_0
        assert (line["traffic"]["parameters_up"], line["traffic"]["parameters_down"]) == (sent, first + sent)
    aggregator("verify", "--data", fed.data)


@pytest.mark.soak  # the first test shows the same of parts
def test_what_is_sent_is_all_that_was_learned_since_a_parts_last_turn(federation):
    """A part that waited for its turn moves by all rounds since then: further than in one of them."""
    fed = federation("abc")
    fed.start_run(Method.TURN, 6, bits=32, first_bits=32)
    own, moved = [], []
    for _ in range(6):
        before = base_at(fed, fed.members[0]) if moved else {p: flatten(make_network(), (p,)) for p in MODEL_PARTS}
        fed.together(1)
        after, turn = base_at(fed, fed.members[0]), MODEL_PARTS[len(moved) % 3]
        moved.append(float(np.linalg.norm(after[turn] - before[turn])))
        own.append([parts_at(fed, member) for member in fed.members])
    # The third round sums the decoder, on which everybody had worked for three: as far as at home, on average.
    drift = np.mean([one["decoder"] for one in own[1]], axis=0) - flatten(make_network(), ("decoder",))
    assert moved[2] > np.linalg.norm(drift), "two rounds' drift, and the third on top"


def test_a_network_or_its_base_that_is_lost_is_fetched_again(federation):
    fed = federation("abc")
    fed.start_run(Method.TURN, 3)
    fed.together(1)
    base_of(fed, fed.members[0]).unlink()
    base_of(fed, fed.members[1]).with_name("model-run-turn-1.safetensors").write_bytes(b"damaged")
    fed.together(1)
    fed.together(1)
    assert all(line["took_part"] for member in fed.members for line in fed.rounds_of(member))
    bases = [base_at(fed, member) for member in fed.members]
    assert all(np.array_equal(one[part], bases[0][part]) for one in bases for part in MODEL_PARTS)


def test_a_network_that_is_another_one_than_was_stored_is_not_trained_on(federation):
    """With other methods its shared parts tell; here they are at home."""
    fed = federation("abc")
    fed.start_run(Method.TURN, 3)
    fed.together(1)
    path = base_of(fed, fed.members[0]).with_name("model-run-turn-1.safetensors")
    network = load_network(path, "model")
    with torch.no_grad():
        next(network.decoder.parameters())[0] += 1
    save_model(path, network)
    fed.together(1)
    said = [line["took_part"] for line in fed.rounds_of(fed.members[0])]
    assert said == [True, True]
    assert np.abs(parts_at(fed, fed.members[0])["decoder"] - base_at(fed, fed.members[0])["decoder"]).max() < 0.5


def test_who_was_away_takes_the_parts_that_moved_and_keeps_the_others(federation):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.TURN, 4, join_s=10)
    away = fed.members[3]
    fed.together(1)
    kept = parts_at(fed, away)
    fed.together(1, members=fed.members[:3])
    fed.together_after(away, 2)
    assert [line["took_part"] for line in fed.rounds_of(away)] == [True, False, True, True]
    bases = [base_at(fed, member) for member in fed.members]
    assert all(np.array_equal(one[part], bases[0][part]) for one in bases for part in MODEL_PARTS)
    assert not np.array_equal(kept["decoder"], parts_at(fed, away)["decoder"])


def test_error_feedback_is_left_out_and_said_so(federation, caplog):
    fed = federation("abc")
    fed.start_run(Method.TURN, 3)
    fed.together(learning=LearningOptions(error_feedback=True))
    assert caplog.text.count(f"error_feedback is not used in run {RUN}") == len(fed.members)
    assert not any(fed.folder.glob("state-*/residual.safetensors"))
