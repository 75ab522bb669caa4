"""Accepting rosters, specifications and results: signatures, their chain, and the institution's own policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.identity import Identity
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm.rounds.rollback_check import WentBackError
from fedddpm.state.folder import StateFolder
from fedddpm.transport.problems import NotEnrolledError
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.documents import open_result, open_spec
from fedddpm_protocol.agreement.lineage import require_chartered
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture, Manifest
from fedddpm_protocol.agreement.policy import LocalPolicy
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import OlderRosterError, ResultError, RosterError, SignatureError, UnknownMemberError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.wire.messages import SignedDocument

STOP_AND_CALL = "Stop, and call the federation's coordinator before you go on"


@dataclass(frozen=True)
class AcceptedSpec:
    """What this institution agreed to: verified, decoded and held against its policy once, and not again."""

    document: SignedDocument  # as the aggregator offers it, to tell it from the next one
    spec: RoundSpec
    charter: Charter  # of its run
    roster: Roster  # that it was made for
    floor: int  # smallest set of institutions whose sum may be opened


def accept_roster(document: SignedDocument, root: bytes, state: StateFolder) -> Roster:
    """The roster under the pinned root key; remembered, so that an older one is refused for ever.

    Raises:
        PolicyError: another root key signed it, or two rosters share a version; WentBackError: it goes back.
    """
    try:
        roster = open_roster(document, root, state.roster_version)
        state.accept_roster(roster.version, roster.hash, document)
    except SignatureError as error:
        raise PolicyError(
            f"the roster is not signed by the root key {keys.fingerprint(root)} that this institution pins",
            "Compare the fingerprint with the coordinator's by telephone and correct federation_root",
        ) from error
    except RosterError as error:
        refusal = WentBackError if isinstance(error, OlderRosterError) else PolicyError
        raise refusal(f"the aggregator's roster is refused: {error}", STOP_AND_CALL) from error
    return roster


def require_enrolled(roster: Roster, identity: Identity, member_id: str) -> None:
    """NotEnrolledError unless the roster holds this id with this key."""
    try:
        enrolled = roster.public_key(member_id) == identity.public_key
        why = "holds another key under this id"
    except UnknownMemberError:
        enrolled, why = False, f"does not hold it; members are {', '.join(roster.ids)}"
    if not enrolled:
        raise NotEnrolledError(
            f"{member_id!r} with the key {identity.fingerprint} is not enrolled: roster version {roster.version} {why}",
            "Call the federation's coordinator, read out this fingerprint and ask for a new signed roster",
            code="not-enrolled",
        )


def expected_network(asked: Architecture, options: LocalPolicyOptions) -> UNet:
    """The network of this package that ``asked`` must be, without memory for its weights.

    Raises:
        PolicyError: the round wants another preset than configured, or a network this package would not build.
    """
    if options.preset not in (None, asked.preset):
        raise PolicyError(
            f"the round trains the network {asked.preset!r}, this institution allows {options.preset!r}",
            f"Call the federation's coordinator; if you agree to {asked.preset!r}, set the policy's preset to it",
        )
    with torch.device("meta"):
        own = UNet(asked.image_size, asked.channels, asked.preset, classes=asked.classes)
    if own.architecture != asked:
        raise PolicyError(f"the round trains {asked}, which is not the network of this package", STOP_AND_CALL)
    return own


def accept_spec(
    document: SignedDocument, charter: Charter, roster: Roster, options: LocalPolicyOptions
) -> AcceptedSpec:
    """The round's specification: signed by the roster's aggregator, what the charter says, within the local policy.

    Raises:
        CharterError: see ``fedddpm_protocol.agreement.lineage.require_chartered``.
        ProtocolError: see ``fedddpm_protocol.agreement.documents.open_spec`` and ``LocalPolicy.check``.
        PolicyError: see :func:`expected_network`.
    """
    spec = open_spec(document, roster)
    require_chartered(spec, charter)
    policy = local_policy(expected_network(spec.architecture, options), Method(spec.method), options)
    policy.check(spec, roster)
    return AcceptedSpec(document, spec, charter, roster, max(policy.floor(roster), charter.min_cohort))


def local_policy(network: UNet, method: Method, options: LocalPolicyOptions) -> LocalPolicy:
    """The protocol's policy for this network and method."""
    manifests: dict[str, Manifest] = {name: manifest(network, parts) for name, parts in method.sessions.items()}
    return LocalPolicy(
        architecture_hash=network.architecture.hash,
        manifests=manifests,
        min_cohort=options.min_cohort,
        c_max=options.c_max,
        max_epochs=options.max_epochs,
        max_steps=options.max_steps or None,
        max_learning_rate=options.max_learning_rate,
        max_clip_norm=options.max_clip_norm,
        max_outer_momentum=options.max_outer_momentum,
        min_bits=options.min_bits,
        allow_two_party=options.allow_two_party,
        discloses_samples=options.disclose_samples,
        allow_weights=options.allow_weights,
    )


def accept_results(
    documents: tuple[SignedDocument, ...], roster: Roster, run: str, first_round: int, previous: bytes
) -> list[RoundResult]:
    """Signed results that continue the chain ``previous`` without a gap; ResultError otherwise."""
    results: list[RoundResult] = []
    for number, document in enumerate(documents):
        result = open_result(document, roster)
        if (result.run, result.round) != (run, first_round + number):
            raise ResultError(f"result {result.round} of run {result.run!r} came out of order", "aggregator")
        if result.previous_result != previous:
            raise ResultError(f"the result of round {result.round} does not follow the one before", "aggregator")
        previous = result.hash
        results.append(result)
    return results
