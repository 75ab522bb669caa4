"""Whole rounds: real institutions, a real aggregator process, every method, every counter."""

import logging

import numpy as np
import pytest
from tests.sdk.support.federation import make_network

from fedddpm import LocalPolicyOptions
from fedddpm.experiment.design.traffic_plan import plan_bytes, plan_round
from fedddpm.model.partition import flatten, manifest
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import coordinates
from fedddpm_protocol.agreement.spec import part_spec


def check_traffic(federation, method, summaries, rings):
    """The counters of what really went over the line are the plan, by parameters and by bytes.

    ``rings``: bits of the values in each round. A theta_0 without a seed is downloaded, as a file with a header.
    """
    network = make_network()
    sizes = {part: coordinates(manifest(network, (part,))) for part in MODEL_PARTS}
    spec_hashes = [line["spec_hash"] for line in federation.rounds_of(federation.members[0])]
    for round_, spec_hash in enumerate(map(bytes.fromhex, spec_hashes)):
        parts = [part_spec(name, manifest(network, p), rings[round_]) for name, p in method.sessions.items()]
        plan = plan_round(method, sizes, spec_hash, federation.members, first=round_ == 0)
        packed = plan_bytes(method, parts, spec_hash, federation.members)
        for member, rounds in summaries.items():
            moved, planned = rounds[round_].traffic, plan[member]
            assert moved.parameters_up == planned.up
            assert moved.parameters_down == planned.first_contact + planned.result
            assert moved.payload_up == packed[member].up
            file = moved.payload_down - packed[member].down
            assert 4 * planned.first_contact <= file <= 4 * planned.first_contact * 1.01 + 8192 * (round_ == 0)
            assert moved.bytes_up > moved.payload_up
            assert moved.bytes_down > moved.payload_down
            assert rounds[round_].fedavg_bytes == 8 * sum(sizes.values())
    for rounds in summaries.values():
        assert "% less than FedAvg)" in str(rounds[1])  # the first round has the download of theta_0 beside its sum


@pytest.mark.parametrize(
    ("method", "members", "weighting", "bits"),
    [
        (Method.UDEC, "abc", "hidden", 8),
        (Method.FULL, "abc", "disclosed", 16),
        (Method.ULATDEC, "abc", "equal", 12),
        (Method.USPLIT, "abcdef", "equal", 24),
    ],
)
def test_two_rounds_end_with_one_model_everywhere(federation, method, members, weighting, bits):
    fed = federation(members)
    rings = (max(16, bits), bits)
    fed.start_run(method, weighting=weighting, bits=bits, first_bits=rings[0])
    # Checks of sums draw what they fetch: they are in no plan of traffic.
    summaries = fed.together(policy=LocalPolicyOptions(disclose_samples=weighting == "disclosed", check_sums=0))
    for rounds in summaries.values():
        assert [summary.round for summary in rounds] == [0, 1]
        assert all(summary.took_part and summary.attempt == 0 for summary in rounds)
        assert all(summary.survivors == tuple(fed.members) for summary in rounds)
        assert all(summary.mean_loss_before > 0 for summary in rounds)
    vectors = [fed.shared_vector(member, method) for member in fed.members]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
    assert not np.array_equal(vectors[0], flatten(make_network(), method.shared_parts))
    check_traffic(fed, method, summaries, rings)


def test_a_log_tells_how_far_a_round_is_and_when_the_run_is_over(federation, caplog):
    fed = federation()
    fed.start_run(Method.UDEC, rounds=1)
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        fed.together()
        said = caplog.messages
        assert said.count("round 1: training started") == len(fed.members)
        assert said.count("round 1, part decoder: joined") == len(fed.members)
        assert any("waiting for the others (join" in text for text in said)
        caplog.clear()
        assert fed.client(fed.members[0]).participate() == []
    model = fed.folder / f"state-{fed.members[0]}" / "model-run-udec-1.safetensors"
    assert model.exists()
    assert f"run run-udec is finished; the model after round 1 is {model}" in caplog.text
