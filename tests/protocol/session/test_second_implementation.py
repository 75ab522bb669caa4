"""The package and the second implementation in one session: each opens what the other sent, whoever sums."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import pytest
from tests.protocol.independent.session import Institution, Plan, open_sum
from tests.protocol.support.sessions import (
    SEGMENTS,
    identity_of,
    inputs_for,
    make_participants,
    make_plan,
    make_roster,
    mask_all,
)

from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.session.coordinator import form_cohort, recover
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Confirmation, Deal, Join, ShareItem, Shares, Unmask, UploadManifest


class Foreign:
    """A second implementation's institution, spoken to in the package's messages."""

    def __init__(self, index: int, plan: Plan) -> None:
        self.name = f"site-{index}"
        self._inner = Institution(self.name, identity_of(index).seed, plan, secrets.token_bytes)

    def join(self, seq: int) -> Join:
        body, signature = self._inner.join(seq)
        return Join(body=body, signature=signature)

    def receive_cohort(self, joins: tuple[Join, ...]) -> Shares:
        body, signature, items = self._inner.deal([join.body for join in joins])
        sealed = [ShareItem(sender=self.name, recipient=to, sealed=item) for to, item in items.items()]
        return Shares(items=tuple(sealed), deal=Deal(body=body, signature=signature))

    def receive_shares(self, items: list[ShareItem], deals: list[Deal]) -> None:
        by_dealer = {deal.parse().dealer: deal.body for deal in deals}
        assert self._inner.receive(by_dealer, {item.sender: item.sealed for item in items}) is None

    def upload(self) -> dict[str, list[bytes]]:
        words = {name: [int(word) for word in values] for name, values in inputs_for(self.name, SEGMENTS).items()}
        return self._inner.upload(words)

    def confirm(self, digests: dict[str, bytes]) -> Confirmation:
        return Confirmation(id=self.name, signature=self._inner.confirm(digests))

    def unmask(self) -> Unmask:
        body, signature = self._inner.unmask()
        return Unmask(id=self.name, body=body, signature=signature)


@pytest.mark.parametrize("foreign", [(0,), (3,), (1, 2)])
def test_both_stand_in_one_session(foreign: tuple[int, ...]) -> None:
    """Five members, of whom the last drops after its shares; t = 4."""
    roster = make_roster(5, c_max=2, n_min=4)
    plan = make_plan(roster)
    simple = Plan(plan.spec_hash, roster.c_max, tuple((s.name, s.bits, s.coordinates) for s in SEGMENTS), 8)
    ours = {name: m for name, m in make_participants(roster, plan).items() if int(name[-1]) not in foreign}
    theirs = {f"site-{index}": Foreign(index, simple) for index in foreign}
    everybody = {**ours, **theirs}
    cohort = form_cohort(plan, roster, [member.join(1) for member in everybody.values()])
    outboxes = {name: member.receive_cohort(cohort.joins) for name, member in everybody.items()}
    for name, shares in outboxes.items():
        cohort.verify_shares(name, shares)
    sharing = cohort.sharing(shares.deal for shares in outboxes.values())
    alive = sorted(everybody)[:4]
    for name in alive:
        items = [item for shares in outboxes.values() for item in shares.items if item.recipient == name]
        everybody[name].receive_shares(items, list(sharing.deals))
    uploads = {n: mask_all(ours[n], inputs_for(n, SEGMENTS)) if n in ours else theirs[n].upload() for n in alive}
    digests = {}
    for name in alive:
        hashes = {s: tuple(hashlib.sha256(chunk).digest() for chunk in uploads[name][s]) for s in uploads[name]}
        digests[name] = sharing.verify_manifest(name, UploadManifest(chunks=hashes))
        if name in ours:
            assert ours[name].finish_upload().chunks == hashes
    survivors = sharing.survivors(digests)
    confirmations = [
        ours[n].receive_survivors(survivors.message.survivors) if n in ours else theirs[n].confirm(digests)
        for n in alive
    ]
    for confirmation in confirmations:
        survivors.verify_confirmation(confirmation)
    unmasks = [
        ours[n].receive_confirmations(confirmations, SpentLog().commit) if n in ours else theirs[n].unmask()
        for n in alive
    ]
    masks = recover(survivors, unmasks)
    opened = {
        segment.name: np.concatenate(
            [
                masks.open_chunk(segment, index, [uploads[n][segment.name][index] for n in alive])
                for index in range(chunk_count(segment, plan.chunk_coordinates))
            ]
        ).tolist()
        for segment in SEGMENTS
    }
    deals = {deal.parse().dealer: deal.body for deal in sharing.deals}
    bodies = {unmask.id: unmask.body for unmask in unmasks}
    assert open_sum(simple, [join.body for join in cohort.joins], deals, uploads, bodies) == opened
    total = sum(inputs_for(name, SEGMENTS[:1])["part"].astype(np.uint64) for name in alive)
    assert opened["part"] == (np.asarray(total) % 2**32).tolist()
