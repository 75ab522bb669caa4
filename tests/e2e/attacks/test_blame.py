"""Four institutions as processes, one dishonest about shares: it is named, and the others finish their round."""

from __future__ import annotations

import json
import sqlite3
from html import unescape
from pathlib import Path

import httpx
import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, sitecustomize

from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.roster import open_roster
from fedddpm_protocol.session.verdicts import Offence, verify_evidence
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import SignedDocument

GARBAGE = """
from dataclasses import replace
from fedddpm_protocol.session import sealed
honest = sealed.seal

def seal(key, session, sender, recipient, pair, nonce):
    return honest(key, session, sender, recipient, replace(pair, self_mask=pair.mask_sk), nonce)

sealed.seal = seal
"""
OTHER_DEAL = """
from fedddpm_protocol.session import participant
from fedddpm_protocol.session.session_secrets import SessionSecrets
honest = participant.deal_shares

def deal_shares(cohort, member, identity, held, draw):
    other = SessionSecrets(held.channel_private, held.mask_private, bytearray(32))
    shares = honest(cohort, member, identity, other, draw)
    held.shares.update(other.shares)
    return shares

participant.deal_shares = deal_shares
"""
WRONG_ANSWER = """
from dataclasses import replace
from fedddpm_protocol.session.participant import Participant
honest = Participant._revealed
Participant._revealed = lambda self, *about: replace(honest(self, *about), share=bytes(32))
"""


SAID = {
    Offence.WRONG_SHARE: "dealt a share to hospital-",
    Offence.WRONG_SECRET: "dealt shares that do not make up the secret that it committed to",
    Offence.WRONG_ANSWER: "released a share of hospital-",
}


def spoiled(new_federation: NewFederation, folder: Path, code: str, rounds: int) -> tuple[Federation, str]:
    """Four processes through a whole run, the last of which is dishonest."""
    fed = new_federation("abcd", c_max=1)
    fed.start(rounds=rounds)
    *honest, spoiler = fed.members
    fed.join_in(spoiler, environment=sitecustomize(folder / "spoiler", code))
    fed.join_in(*honest)
    fed.end(*honest, timeout_s=240)
    return fed, spoiler


def check_named(fed: Federation, spoiler: str, offence: Offence) -> None:
    """In rounds, on the page and in the audit log; each honest institution checked the evidence, as anybody can."""
    fed.check_models(members=fed.members[:3])
    with httpx.Client(trust_env=False) as http:
        page = unescape(http.get(f"{fed.url}/").text)
    audit = fed.aggregator("audit", "--data", fed.data)
    for where in (fed.aggregator("rounds", "--data", fed.data), page, audit):
        assert f"{spoiler} {SAID[offence]}" in where
    assert "member convicted" in audit
    entry = next(line.verdicts for line in fed.lines() if line.verdicts)
    assert spoiler in entry[0]
    for member in fed.members[:3]:
        assert f"{spoiler} sits out the next attempts" in " ".join(fed.log(member).split())
        assert "does not hold" not in fed.log(member)
    assert "this institution sits out the next attempts" in " ".join(fed.log(spoiler).split())
    assert verify_history(fed.context)["verdicts"] >= 1
    (told, *_) = evidence_in(fed)
    document = SignedDocument.model_validate_json(fed.roster.read_bytes())
    found = verify_evidence(open_roster(document, bytes.fromhex(fed.root_public)), told)
    assert (found.verdict.member, found.verdict.offence) == (spoiler, offence)


def evidence_in(fed: Federation) -> list[Evidence]:
    """What an honest institution has kept in its own state."""
    with sqlite3.connect(fed.site(fed.members[0]) / "state" / "state.sqlite") as db:
        return [Evidence.model_validate(json.loads(text)) for (text,) in db.execute("SELECT evidence FROM convictions")]


@pytest.mark.parametrize(
    ("code", "offence"), [(GARBAGE, Offence.WRONG_SHARE), (OTHER_DEAL, Offence.WRONG_SECRET)], ids=["share", "secret"]
)
def test_a_dishonest_dealer_costs_one_attempt(
    new_federation: NewFederation, tmp_path: Path, code: str, offence: Offence
) -> None:
    fed, spoiler = spoiled(new_federation, tmp_path, code, 1)
    fed.check_round(0, fed.members[:3])
    assert [line.attempt for line in fed.lines()] == [0, 1]
    check_named(fed, spoiler, offence)


def test_a_lying_revealer_costs_nothing(new_federation: NewFederation, tmp_path: Path) -> None:
    """Three of its round's four answers are right, and t = 3; from then on it sits out."""
    fed, spoiler = spoiled(new_federation, tmp_path, WRONG_ANSWER, 2)
    assert [line.attempt for line in fed.lines()] == [0, 0]
    assert set(fed.lines(0)[0].survivors) == set(fed.members)
    fed.check_round(1, fed.members[:3])
    check_named(fed, spoiler, Offence.WRONG_ANSWER)
