"""theta_0 from its seed: nobody asks for the file, unless the seed is not the file's."""

from __future__ import annotations

import numpy as np
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import SIZE, TRAINING, Federation

from fedddpm.generation.networks import load_network, newest_network
from fedddpm.model.initialization import initial_vector, seed_of
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten
from fedddpm_protocol.agreement.methods import Method


def fetched_models(fed: Federation, member: str) -> list[str]:
    """Hashes of the models that an institution asked for."""
    return [exchange.path.rsplit("/", 1)[1] for exchange in fed.proxy(member).requests("GET /v1/models/")]


def test_nobody_asks_for_a_first_model_that_has_a_seed(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    fed.start(Method.FULL, bits=16, first_bits=16)
    for member in fed.members:
        fed.proxy(member)
    fed.join_here()
    fed.end()
    fed.check_models(Method.FULL)
    assert [fetched_models(fed, member) for member in fed.members] == [[], [], []]
    spec = fed.spec()
    assert spec.initial_seed == seed_of(1)
    for member in fed.members:
        moved = fed.site_rounds(member)[0]["traffic"]
        assert moved["parameters_down"] == sum(part.parameters for part in spec.parts)
        assert moved["payload_down"] < 2.1 * moved["parameters_down"]
    start = initial_vector(spec.architecture, spec.initial_seed)
    assert not np.array_equal(start, flatten(newest_network(fed.site(fed.members[0]) / "state")))  # it was trained


def test_a_seed_of_other_weights_is_told_and_the_file_counts(new_federation: NewFederation) -> None:
    """Somebody changed the weights after init-model and kept the seed: everybody downloads what the hash names."""
    fed = new_federation("abc")
    path = fed.init_model(SIZE, 1, "tiny")
    network = load_network(path, "theta_0")
    network.decoder.to_image.bias.data += 1
    save_model(path, network, initial_seed=seed_of(1))
    fed.start_run("run-1", "UDEC", path, rounds=1, **TRAINING)
    fed.serve()
    first, *others = fed.members
    fed.proxy(first)
    fed.join_in(first)
    fed.join_here(*others)
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()
    assert fetched_models(fed, first) == [fed.spec().initial_model_hash.hex()]
    said = " ".join(fed.log(first).split())
    assert said.count("the first model does not follow from the seed that stands in the specification") == 1
    assert "tell the coordinator" in said
