"""Sessions with one dishonest member: how it spoils its shares, and what the others can show of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from tests.protocol.support.sessions import SERVER, inbox_of, inputs_for, make_participants, make_roster, mask_all
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.errors import AccusationError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session import dealing
from fedddpm_protocol.session.cohort import Cohort, SurvivorSet, session_plan
from fedddpm_protocol.session.coordinator import form_cohort
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.session_secrets import DealtPair, DealtShare, SessionSecrets
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.session.verdicts import Offence, Verdict, evidence_of, verify_evidence
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import Accusation, Deal, Shares, Unmask

LIAR = "site-3"


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@dataclass
class Trial:
    """Four members, one of whom may conspire, t = 3; the last one is dishonest if ``spoil`` says how."""

    spoil: Callable[[Participant, Cohort, Shares], Shares] = lambda machine, cohort, shares: shares
    c_max: int = 1
    n: int = 4
    accusations: dict[str, Accusation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = make_roster(self.n, self.c_max)
        self.spec = make_spec(self.roster, chunk_coordinates=8)
        self.document = sign_spec(self.spec, SERVER)
        self.plan = session_plan(self.spec, self.roster, "full")
        self.machines = make_participants(self.roster, self.plan)
        joins = [machine.join(1) for machine in self.machines.values()]
        self.cohort = form_cohort(self.plan, self.roster, joins)
        self.outboxes = {}
        for name, machine in self.machines.items():
            shares = machine.receive_cohort(self.cohort.joins)
            if name == LIAR:
                shares = self.spoil(machine, self.cohort, shares)
                machine._own_deal = shares.deal
            self.cohort.verify_shares(name, shares)  # the aggregator notices nothing
            self.outboxes[name] = shares
        self.sharing = self.cohort.sharing(shares.deal for shares in self.outboxes.values())

    def deliver(self) -> list[str]:
        """Give everybody its inbox; who goes on. The others left an accusation."""
        alive = []
        for name, machine in self.machines.items():
            try:
                machine.receive_shares(*inbox_of(name, self.outboxes.values()))
                alive.append(name)
            except AccusationError:
                assert machine.accusation is not None
                self.accusations[name] = machine.accusation
        return alive

    def answers(self, uploading: list[str]) -> tuple[SurvivorSet, list[Unmask]]:
        """The survivors, and what they reveal."""
        digests = {}
        for name in uploading:
            mask_all(self.machines[name], inputs_for(name, self.plan.segments))
            digests[name] = self.sharing.verify_manifest(name, self.machines[name].finish_upload())
        survivors = self.sharing.survivors(digests)
        confirmations = [self.machines[name].receive_survivors(survivors.message.survivors) for name in uploading]
        return survivors, [
            self.machines[name].receive_confirmations(confirmations, SpentLog().commit) for name in uploading
        ]

    def items_for(self, name: str) -> dict[str, bytes]:
        return {item.sender: item.sealed for item in inbox_of(name, self.outboxes.values())[0]}

    def evidence(self, verdict: Verdict) -> Evidence:
        assert verdict.proof is not None
        return evidence_of(self.document, "full", self.cohort, verdict.proof)

    def convicts(self, verdict: Verdict, member: str, offence: Offence) -> None:
        """The evidence, read again from its JSON and with nothing else but the roster, says the same."""
        evidence = Evidence.model_validate_json(self.evidence(verdict).model_dump_json())
        found = verify_evidence(self.roster, evidence)
        assert (found.verdict.member, found.verdict.offence) == (member, offence)
        assert (found.base_model_hash, found.part) == (self.plan.base_model_hash, "full")
        assert verdict == found.verdict
        assert member in verdict.words


# --- dishonest dealers -----------------------------------------------------------------------------------------------


def with_items(change: Callable[[DealtPair], DealtPair], victims: int = 1) -> Callable[..., Shares]:
    """A dealer that seals other shares than it commits to, to the first ``victims`` members."""

    def spoil(machine: Participant, cohort: Cohort, shares: Shares) -> Shares:
        held, real = machine._secrets, dealing.sealed.seal
        assert held is not None

        def seal(key: bytes, sid: bytes, sender: str, recipient: str, pair: DealtPair, nonce: bytes) -> bytes:
            told = change(pair) if recipient in cohort.ids[:victims] else pair
            return real(key, sid, sender, recipient, told, nonce)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dealing.sealed, "seal", seal)
            return dealing.deal_shares(cohort, machine.member_id, machine._identity, held, machine._random)

    return spoil


def other_secrets(kind: str) -> Callable[..., Shares]:
    """A dealer whose shares are well made, of another secret than its JOIN commits to."""

    def spoil(machine: Participant, cohort: Cohort, shares: Shares) -> Shares:
        held = machine._secrets
        assert held is not None
        lie = {kind: bytearray(bytes(range(32)))}
        fake = SessionSecrets(held.channel_private, lie.get("mask", held.mask_private), lie.get("self", held.self_mask))
        shares = dealing.deal_shares(cohort, machine.member_id, machine._identity, fake, machine._random)
        held.shares.update(fake.shares)
        return shares

    return spoil


def with_another_key(machine: Participant, cohort: Cohort, shares: Shares) -> Shares:
    """A dealer that commits to another key than the one it sealed the first member's item with."""
    body = shares.deal.parse()
    first = replace(body.lines[0], channel_key=flipped(body.lines[0].channel_key))
    raw = canonical.encode(replace(body, lines=(first, *body.lines[1:])))
    return Shares(items=shares.items, deal=Deal(body=raw, signature=machine._identity.sign("deal", raw)))


def another_deal(trial: Trial) -> Shares:
    """A second deal of the liar's in the same session, well made."""
    machine = trial.machines[LIAR]
    held = machine._secrets
    assert held is not None
    again = SessionSecrets(held.channel_private, held.mask_private, held.self_mask)
    return dealing.deal_shares(trial.cohort, LIAR, machine._identity, again, machine._random)


SPOILED = {
    "self mask": lambda p: replace(p, self_mask=replace(p.self_mask, share=flipped(p.self_mask.share))),
    "mask key": lambda p: replace(p, mask_sk=replace(p.mask_sk, share=flipped(p.mask_sk.share))),
    "nonce": lambda p: replace(p, self_mask=replace(p.self_mask, nonce=flipped(p.self_mask.nonce))),
    "swapped": lambda p: DealtPair(p.mask_sk, p.self_mask),
    "garbage": lambda p: DealtPair(DealtShare(bytes(32), bytes(32)), DealtShare(bytes(32), bytes(32))),
}
