"""A specification is verified, decoded and hashed once on its way in; what a stale one needs is told by its type."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.specs import make_spec

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm.rounds import rollback_check
from fedddpm.rounds.rollback_check import RollbackCheck
from fedddpm.rounds.trust import accept_spec
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.spec import RoundSpec, part_spec
from fedddpm_protocol.errors import CharterError, StaleRosterError, StaleSpecError
from fedddpm_protocol.errors import PolicyError as RefusedByPolicy
from fedddpm_protocol.primitives import canonical, keys

MEMBERS = ("site-0", "site-1", "site-2")


def spec_of(federation: Federation) -> tuple[Charter, RoundSpec]:
    """Of a network that institutions build at home, under its charter."""
    network, method = UNet(8, 1, "tiny"), Method.UDEC
    return chartered(
        make_spec(
            federation.roster,
            method,
            architecture=network.architecture,
            parts=tuple(part_spec(name, manifest(network, parts)) for name, parts in method.sessions.items()),
            chunk_coordinates=65536,
            epochs=7,
        )
    )


@pytest.fixture
def federation() -> Federation:
    return Federation.found("study", MEMBERS, 0, 3)


def test_a_specification_is_verified_and_decoded_once(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    charter, spec = spec_of(federation)
    signed, done = sign_spec(spec, federation.server), []

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object) -> object:
            done.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(keys, "verify")
    counted(canonical, "decode")
    accepted = accept_spec(signed, charter, federation.roster, LocalPolicyOptions(min_cohort=3))
    assert sorted(done) == ["decode", "verify"]
    assert (accepted.document, accepted.spec, accepted.roster, accepted.floor) == (signed, spec, federation.roster, 3)
    counted(canonical, "encode")
    assert accepted.spec.hash == accepted.spec.hash == spec.hash
    assert done.count("encode") <= 2  # once for each of the two records


def test_what_the_charter_does_not_say_is_refused(federation: Federation) -> None:
    charter, spec = spec_of(federation)
    signed = sign_spec(spec.with_terms_hash(learning_rate=1e-30), federation.server)
    with pytest.raises(CharterError, match="1e-30 as learning rate"):
        accept_spec(signed, charter, federation.roster, LocalPolicyOptions())
    unsigned = sign_spec(spec.with_terms_hash(charter_hash=b""), federation.server)
    with pytest.raises(CharterError, match="charter hash"):
        accept_spec(unsigned, charter, federation.roster, LocalPolicyOptions())


def test_the_charter_wants_a_cohort_of_its_own(federation: Federation) -> None:
    charter, spec = chartered(spec_of(federation)[1], min_cohort=7)
    accepted = accept_spec(sign_spec(spec, federation.server), charter, federation.roster, LocalPolicyOptions())
    assert accepted.floor == 7


def test_the_policy_is_held_against_it(federation: Federation) -> None:
    charter, spec = spec_of(federation)
    signed = sign_spec(spec, federation.server)
    with pytest.raises(RefusedByPolicy, match="max_epochs"):
        accept_spec(signed, charter, federation.roster, LocalPolicyOptions(max_epochs=6))
    with pytest.raises(PolicyError, match="tiny"):
        accept_spec(signed, charter, federation.roster, LocalPolicyOptions(preset="paper"))


def test_only_a_stale_roster_makes_the_aggregator_be_asked_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback_check, "PAUSE_S", 0.0)
    charter, spec = spec_of(federation)
    signed, told = sign_spec(replace(spec, roster_version=2), federation.server), []
    doubt = RollbackCheck(told.append)
    newer, older = replace(federation.roster, version=3), federation.roster
    with pytest.raises(StaleSpecError), doubt.once():
        accept_spec(signed, charter, newer, LocalPolicyOptions())
    assert not told
    with doubt.once():
        accept_spec(signed, charter, older, LocalPolicyOptions())
    assert len(told) == 1
    with pytest.raises(StaleRosterError), doubt.once():
        accept_spec(signed, charter, older, LocalPolicyOptions())
