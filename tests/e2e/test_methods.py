"""Every method through the installed commands alone: exact sums, shared and local parts, counted traffic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from local_federation import CommandError
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import SIZE, TRAINING, Federation

from fedddpm import LocalPolicyOptions
from fedddpm.experiment.design.traffic_plan import plan_bytes, plan_round
from fedddpm.generation.networks import newest_network
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method, reporters_by_session
from fedddpm_protocol.agreement.model_layout import coordinates
from fedddpm_protocol.wire.phases import Phase


def check_traffic(fed: Federation, method: Method, bits: int) -> None:
    """``rounds.jsonl`` holds, parameter by parameter and byte by byte, what the planner says: theta_0 costs nothing."""
    network = UNet(SIZE, 1, "tiny")
    sizes = {part: coordinates(manifest(network, (part,))) for part in MODEL_PARTS}
    for result in fed.results():
        parts, first = fed.spec_of(result).parts, result.round == 0
        assert {part.values.bits for part in parts} == {max(bits, 16) if first else bits}
        plan = plan_round(method, sizes, result.spec_hash, fed.members, first=first, seeded=True)
        packed = plan_bytes(method, parts, result.spec_hash, fed.members)
        for member in fed.members:
            moved = fed.site_rounds(member)[result.round]["traffic"]
            assert moved["parameters_up"] == plan[member].up, member
            assert moved["parameters_down"] == plan[member].result, member
            assert moved["payload_up"] == packed[member].up
            assert moved["payload_down"] == packed[member].down
            assert moved["bytes_up"] > moved["payload_up"]
            assert moved["bytes_down"] > moved["payload_down"]


def check_parts(fed: Federation, method: Method) -> None:
    """Shared parts are the published ones; parts that stay at home were trained and differ."""
    fed.check_models(method)
    networks = [newest_network(fed.site(member) / "state") for member in fed.members]
    for part in MODEL_PARTS:
        vectors = [flatten(network, (part,)) for network in networks]
        for one, other in itertools.combinations(vectors, 2):
            assert np.array_equal(one, other) == (part in method.shared_parts), part


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        pytest.param(Method.FULL, 32, marks=pytest.mark.soak),
        pytest.param(Method.ULATDEC, 12, marks=pytest.mark.soak),
        (Method.UDEC, 8),
    ],
)
def test_two_rounds_of_three(new_installed_federation: NewFederation, method: Method, bits: int) -> None:
    fed = new_installed_federation("abc")
    fed.start(method, rounds=2, bits=bits, first_bits=max(bits, 16))
    fed.join_in()
    fed.end()
    for round_ in (0, 1):
        fed.check_round(round_, fed.members)
    check_parts(fed, method)
    check_traffic(fed, method, bits)


def test_two_rounds_of_usplit_with_six(new_federation: NewFederation) -> None:
    fed = new_federation("abcdef")
    fed.start(Method.USPLIT, rounds=2, weighting="equal", bits=16, first_bits=16)
    fed.join_in()
    fed.end()
    results = fed.results()
    assert [result.round for result in results] == [0, 1]
    for result in results:
        drawn = reporters_by_session(Method.USPLIT, result.spec_hash, fed.members)
        for part in result.parts:
            assert part.opened
            assert part.survivors == drawn[part.part]
            assert part.sums[0] == 65535 * len(part.survivors)
            assert [total > 0 for total in part.sums[1:]] == [part.part == "decoder"] * 2  # losses stand in one sum
    check_parts(fed, Method.USPLIT)
    check_traffic(fed, Method.USPLIT, 16)


def test_disclosed_counts_give_the_same_weights(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    fed.start(Method.UDEC, weighting="disclosed", weight_cap=10)
    fed.join_here(fed.members[0])
    assert "policy does not give it" in str(fed.failure_of(fed.members[0]))
    fed.join_here(policy=LocalPolicyOptions(disclose_samples=True))
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()


def sign_run(fed: Federation, method: str, **options: object) -> str:
    """``sign-run`` as a process of its own, that must refuse; what it said, on one line."""
    model = fed.init_model(SIZE, 1, "tiny")
    command = super(Federation, fed).aggregator
    words = [w for key, value in {**TRAINING, **options}.items() for w in (f"--{key.replace('_', '-')}", str(value))]
    with pytest.raises(CommandError) as caught:
        command(
            *("federation", "sign-run", str(fed.folder / "root" / "run-1.json"), "--root", str(fed.root_key)),
            *("--name", "run-1", "--method", method, "--rounds", "1", *words),
            *("--roster", str(fed.roster), "--initial-model", str(model)),
        )
    assert "Traceback" not in str(caught.value)
    return " ".join(str(caught.value).split())


def test_usplit_with_four_is_refused(new_federation: NewFederation) -> None:
    said = sign_run(new_federation("abcd"), "USPLIT", weighting="equal")
    assert "ended with 1" in said
    assert "2 reporters are too few to hide one update" in said
    assert "Enrol at least 6 members, or use FULL, ULATDEC or UDEC" in said


def test_usplit_with_hidden_counts_is_refused(new_federation: NewFederation) -> None:
    fed = new_federation("abcdef")
    said = sign_run(fed, "USPLIT", weighting="hidden")
    assert "ended with 1" in said
    assert "USPLIT cannot hide sample counts" in said
    assert "one member would reveal one count" in said


def test_an_institution_refuses_usplit_below_its_own_floor(new_federation: NewFederation) -> None:
    """What the aggregator allows by the roster may still be too little for one institution."""
    fed = new_federation("abcdef")
    fed.start(Method.USPLIT, weighting="equal")
    fed.join_in(fed.members[0], policy={"min_cohort": 4})
    code, said = fed.exit_of(fed.members[0])
    assert code == 3
    assert "too few to hide one update (4 are needed)" in said
    assert all(line.phase == Phase.JOIN for line in fed.lines())
