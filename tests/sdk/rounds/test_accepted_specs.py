"""A specification is verified, decoded and hashed once on its way in; what a stale one needs is told by its type."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.protocol.support.specs import make_spec

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm.rounds import rollback_check
from fedddpm.rounds.rollback_check import RollbackCheck
from fedddpm.rounds.trust import accept_spec
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.spec import RoundSpec, part_spec
from fedddpm_protocol.errors import PolicyError as RefusedByPolicy
from fedddpm_protocol.errors import StaleRosterError, StaleSpecError
from fedddpm_protocol.primitives import canonical, keys

MEMBERS = ("site-0", "site-1", "site-2")


def spec_of(federation: Federation) -> RoundSpec:
    """Of a network that institutions build at home."""
    network, method = UNet(8, 1, "tiny"), Method.UDEC
    return make_spec(
        federation.roster,
        method,
        architecture=network.architecture,
        parts=tuple(part_spec(name, manifest(network, parts)) for name, parts in method.sessions.items()),
        chunk_coordinates=65536,
        epochs=7,
    )


@pytest.fixture
def federation() -> Federation:
    return Federation.found("study", MEMBERS, 0, 3)


def test_a_specification_is_verified_and_decoded_once(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(federation)
    signed, done = sign_spec(spec, federation.server), []

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object) -> object:
            done.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(keys, "verify")
    counted(canonical, "decode")
    accepted = accept_spec(signed, federation.roster, LocalPolicyOptions(min_cohort=3))
    assert sorted(done) == ["decode", "verify"]
    assert (accepted.document, accepted.spec, accepted.roster, accepted.floor) == (signed, spec, federation.roster, 3)
    counted(canonical, "encode")
    assert accepted.spec.hash == accepted.spec.hash == spec.hash
    assert done.count("encode") <= 2  # once for each of the two records


def test_the_policy_is_held_against_it(federation: Federation) -> None:
    signed = sign_spec(spec_of(federation), federation.server)
    with pytest.raises(RefusedByPolicy, match="max_epochs"):
        accept_spec(signed, federation.roster, LocalPolicyOptions(max_epochs=6))
    with pytest.raises(PolicyError, match="tiny"):
        accept_spec(signed, federation.roster, LocalPolicyOptions(preset="paper"))


def test_only_a_stale_roster_makes_the_aggregator_be_asked_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback_check, "PAUSE_S", 0.0)
    signed, told = sign_spec(replace(spec_of(federation), roster_version=2), federation.server), []
    doubt = RollbackCheck(told.append)
    newer, older = replace(federation.roster, version=3), federation.roster
    with pytest.raises(StaleSpecError), doubt.once():
        accept_spec(signed, newer, LocalPolicyOptions())
    assert not told
    with doubt.once():
        accept_spec(signed, older, LocalPolicyOptions())
    assert len(told) == 1
    with pytest.raises(StaleRosterError), doubt.once():
        accept_spec(signed, older, LocalPolicyOptions())
