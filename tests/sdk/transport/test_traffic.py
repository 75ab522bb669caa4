"""Bytes of a run beside naive FedAvg: FULL and UDEC with the paper's network, through the real parts and schedule."""

import hashlib
import itertools

import pytest

from fedddpm.experiment.design.traffic_plan import plan_bytes, plan_round, run_bytes
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm.transport.traffic import beside_fedavg, fedavg_bytes, less_than_fedavg
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method, reporters_by_session
from fedddpm_protocol.agreement.model_layout import coordinates
from fedddpm_protocol.agreement.spec import part_spec

ROUNDS = 15
MEMBERS = [f"hospital-{number}" for number in range(5)]


@pytest.fixture(scope="module")
def network():
    return UNet(28, 1, "paper")


def drawn(round_):
    return hashlib.sha256(f"round {round_}".encode()).digest()


def planned(network, method, bits, first_bits=None, *, seeded):
    """One plan of bytes a round."""
    rings = [first_bits or bits] + [bits] * (ROUNDS - 1)
    whole = sum(coordinates(manifest(network, (part,))) for part in MODEL_PARTS)
    return [
        plan_bytes(
            method,
            [part_spec(name, manifest(network, parts), ring) for name, parts in method.sessions.items()],
            drawn(round_),
            MEMBERS,
            first_contact=0 if seeded or round_ else whole,
        )
        for round_, ring in enumerate(rings)
    ]


def less(network, method, bits, first_bits=None, *, seeded):
    """Per cent less than naive FedAvg over the same rounds; both without the download of the final model."""
    fedavg = fedavg_bytes(2_996_315) * ROUNDS * len(MEMBERS)
    return less_than_fedavg(run_bytes(planned(network, method, bits, first_bits, seeded=seeded)), fedavg)


def padded(percent):
    """What is left of a saving of ``percent`` when every word has one per cent of padding beside it."""
    return percent - 0.01 * (100 - percent)


@pytest.mark.parametrize(
    ("method", "bits", "first_bits", "downloaded", "seeded"),
    [
        (Method.UDEC, 8, 8, 90.889, 94.223),
        (Method.FULL, 8, 8, 72.500, 75.833),
        # The first round of a run has wider words: nobody knows yet how large updates are.
        (Method.UDEC, 8, 16, 90.491, 93.824),
        (Method.FULL, 8, 16, 70.833, 74.167),
        (Method.UDEC, 8, 24, 90.093, 93.426),
        (Method.ULATDEC, 8, 24, 80.920, 84.254),
        (Method.FULL, 8, 24, 69.167, 72.500),
        (Method.UDEC, 16, 24, 84.714, 88.047),
        (Method.ULATDEC, 16, 24, 68.037, 71.370),
        (Method.FULL, 16, 24, 46.667, 50.000),
    ],
)
def test_what_a_run_of_fifteen_rounds_saves(network, method, bits, first_bits, downloaded, seeded):
    """Below the number for words of exactly ``bits`` by padding and sums, together less than one per cent of them."""
    for percent, has_seed in ((downloaded, False), (seeded, True)):
        assert padded(percent) < less(network, method, bits, first_bits, seeded=has_seed) <= percent + 0.001


def test_full_in_float32_words_is_fedavg_itself(network):
    assert less(network, Method.FULL, 32, seeded=False) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("method", "bits"), list(itertools.product(Method, (4, 6, 8, 12, 16, 20, 24, 32))))
def test_bytes_are_the_planned_parameters_at_their_width(network, method, bits):
    members, spec_hash = [*MEMBERS, "hospital-5"], drawn(3)
    sizes = {part: coordinates(manifest(network, (part,))) for part in MODEL_PARTS}
    parts = [part_spec(name, manifest(network, tensors), bits) for name, tensors in method.sessions.items()]
    counted = plan_round(method, sizes, spec_hash, members, first=True)
    moved = plan_bytes(method, parts, spec_hash, members, first_contact=sum(sizes.values()))
    reporters = reporters_by_session(method, spec_hash, members)
    for member in members:
        sessions = sum(member in reporters[name] for name in method.sessions)
        plan, real = counted[member], moved[member]
        assert real.first_contact == 4 * plan.first_contact == 4 * 2_996_315
        assert plan.up * bits / 8 <= real.up - 12 * sessions <= plan.up * bits / 8 * 1.01 + 1
        assert plan.result * bits / 8 <= real.down <= plan.result * bits / 8 * 1.01 + 1
    seeded = plan_round(method, sizes, spec_hash, members, first=True, seeded=True)
    assert {plan.first_contact for plan in seeded.values()} == {0}


def test_people_read_more_and_less():
    assert beside_fedavg(1_400_000, 700_000, 21_000_000) == "1.40 MB up, 0.70 MB down (90.0 % less than FedAvg)"
    assert beside_fedavg(1_400_000, 1_400_000, 1_400_000) == "1.40 MB up, 1.40 MB down (100.0 % more than FedAvg)"
    assert beside_fedavg(1_400_000, 0, None) == "1.40 MB up, 0.00 MB down"
    assert run_bytes([]) == 0
