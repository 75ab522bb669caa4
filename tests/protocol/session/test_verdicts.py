"""Who is to blame for wrong shares: each spoiler is convicted by evidence that holds by itself, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.protocol.support.sessions import identity_of, make_roster
from tests.protocol.support.trials import (
    LIAR,
    SPOILED,
    Trial,
    another_deal,
    flipped,
    other_secrets,
    with_another_key,
    with_items,
)

from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import (
    CommitmentError,
    EncodingError,
    EvidenceError,
    MisdealtError,
    PeerProtocolError,
    SignatureError,
    StaleSpecError,
)
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.session import dealing
from fedddpm_protocol.session.cohort import Cohort, Sharing
from fedddpm_protocol.session.coordinator import recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.session_secrets import DealtPair
from fedddpm_protocol.session.verdicts import (
    Offence,
    evidence_of,
    judge_accusation,
    judge_accusers,
    judge_answer,
    judge_secrets,
    verify_evidence,
)
from fedddpm_protocol.wire.evidence import AnswerProof, Evidence, ItemProof, SecretProof
from fedddpm_protocol.wire.messages import Accusation, AccusationBody, Accused, Deal, RevealedShare, Shares, Unmask


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_a_wrong_share_convicts_its_dealer_before_anything_is_masked(change: Callable[[DealtPair], DealtPair]) -> None:
    trial = Trial(with_items(change))
    assert trial.deliver() == ["site-1", "site-2", LIAR]
    (accusation,) = trial.accusations.values()
    (verdict,) = judge_accusation(trial.sharing, accusation, trial.items_for("site-0"))
    trial.convicts(verdict, LIAR, Offence.WRONG_SHARE)


def test_an_accusation_shows_one_pair_and_nothing_of_others() -> None:
    """The key of one direction: with it nobody opens what the accuser sent, or what others sent to it."""
    trial = Trial(with_items(SPOILED["garbage"]))
    private = bytes(trial.machines["site-0"]._secrets.channel_private)  # type: ignore[union-attr]
    trial.deliver()
    body = trial.accusations["site-0"].parse()
    (accused,) = body.accused
    assert private not in trial.accusations["site-0"].body
    sid = trial.cohort.session_id
    for dealer, recipient in (("site-0", LIAR), ("site-1", "site-0"), (LIAR, "site-1")):
        line = trial.sharing.commitments(dealer, recipient)
        sealed = trial.items_for(recipient)[dealer]
        assert dealing.opened_as_dealt(sid, dealer, line, sealed, accused.channel_key) is None


def test_an_item_that_does_not_open_at_all() -> None:
    def spoil(machine: Participant, cohort: Cohort, shares: Shares) -> Shares:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dealing.sealed, "seal", lambda *_: bytes(156))
            held = machine._secrets
            assert held is not None
            return dealing.deal_shares(cohort, machine.member_id, machine._identity, held, machine._random)

    trial = Trial(spoil)
    assert trial.deliver() == [LIAR]
    for name, accusation in trial.accusations.items():
        (verdict,) = judge_accusation(trial.sharing, accusation, trial.items_for(name))
        trial.convicts(verdict, LIAR, Offence.WRONG_SHARE)


@pytest.mark.parametrize(("kind", "drops"), [("self", False), ("mask", True)])
def test_shares_of_another_secret_convict_their_dealer(kind: str, drops: bool) -> None:
    trial = Trial(other_secrets(kind))
    alive = trial.deliver()
    assert alive == list(trial.machines)  # they are all as committed
    survivors, unmasks = trial.answers(alive[:3] if drops else alive)
    with pytest.raises(MisdealtError) as caught:
        recover(survivors, unmasks)
    assert caught.value.blame == LIAR
    (verdict,) = judge_secrets(survivors, unmasks)
    trial.convicts(verdict, LIAR, Offence.WRONG_SECRET)
    assert not any(judge_answer(survivors, unmask) for unmask in unmasks)


def test_honest_dealers_are_not_convicted() -> None:
    trial = Trial()
    survivors, unmasks = trial.answers(trial.deliver()[:3])
    recover(survivors, unmasks)
    assert judge_secrets(survivors, unmasks) == ()
    assert not any(judge_answer(survivors, unmask) for unmask in unmasks)


# --- dishonest accusers ----------------------------------------------------------------------------------------------


def accusation_of(trial: Trial, accuser: str, dealer: str, key: bytes, deal: Deal | None = None) -> Accusation:
    digest = dealing.deal_hash(deal or trial.sharing.deal(dealer))
    body = canonical.encode(AccusationBody(trial.cohort.session_id, accuser, (Accused(dealer, digest, key),)))
    signature = identity_of(int(accuser[-1])).sign("accusation", body)
    return Accusation(id=accuser, body=body, signature=signature)


def key_of(trial: Trial, holder: str, dealer: str) -> bytes:
    held = trial.machines[holder]._secrets
    assert held is not None
    public = trial.cohort.body(dealer).channel_public_key
    sid = trial.cohort.session_id
    return dealing.sealed.channel_key(bytes(held.channel_private), public, sid, dealer, holder)


def test_a_false_accusation_convicts_the_accuser() -> None:
    trial = Trial()
    accusation = accusation_of(trial, LIAR, "site-0", key_of(trial, LIAR, "site-0"))
    (verdict,) = judge_accusation(trial.sharing, accusation, trial.items_for(LIAR))
    trial.convicts(verdict, LIAR, Offence.FALSE_ACCUSATION)


def test_another_key_leaves_two_words_against_each_other() -> None:
    """Whether the dealer committed to a wrong key or the accuser names one, nobody can tell."""
    honest = Trial()
    accusation = accusation_of(honest, LIAR, "site-0", bytes(32))
    (verdict,) = judge_accusation(honest.sharing, accusation, honest.items_for(LIAR))
    assert (verdict.member, verdict.offence, verdict.others) == (LIAR, Offence.CONTRADICTION, ("site-0",))
    assert verdict.proof is None
    trial = Trial(with_another_key)
    assert trial.deliver() == ["site-1", "site-2", LIAR]
    items = trial.items_for("site-0")
    (verdict,) = judge_accusation(trial.sharing, trial.accusations["site-0"], items)
    assert (verdict.member, verdict.offence, verdict.others) == ("site-0", Offence.CONTRADICTION, (LIAR,))
    proof = ItemProof(deal=trial.sharing.deal(LIAR), sealed=items[LIAR], accusation=trial.accusations["site-0"])
    with pytest.raises(EvidenceError, match="neither"):
        verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, proof))


def test_more_accusers_than_may_conspire_convict() -> None:
    trial = Trial(n=5)
    accusations = [accusation_of(trial, f"site-{k}", LIAR, bytes(32)) for k in (0, 1, 2)]
    assert judge_accusers(trial.sharing, LIAR, accusations[:1]) is None
    assert judge_accusers(trial.sharing, LIAR, [accusations[0], accusations[0]]) is None
    verdict = judge_accusers(trial.sharing, LIAR, accusations[:2])
    assert verdict is not None
    trial.convicts(verdict, LIAR, Offence.ACCUSED_BY_MANY)
    assert judge_accusers(trial.sharing, "site-4", accusations) is None


def test_one_word_alone_convicts_nobody_where_nobody_may_conspire() -> None:
    trial = Trial(c_max=0)
    assert judge_accusers(trial.sharing, LIAR, [accusation_of(trial, "site-0", LIAR, bytes(32))]) is None


def test_a_dealer_cannot_turn_a_second_deal_against_its_accuser() -> None:
    """It deals a wrong share under one deal, signs a good one as well, and shows that with the honest accusation."""
    trial = Trial(with_items(SPOILED["garbage"]))
    good = another_deal(trial)
    trial.deliver()
    sealed = next(item.sealed for item in good.items if item.recipient == "site-0")
    proof = ItemProof(deal=good.deal, sealed=sealed, accusation=trial.accusations["site-0"])
    with pytest.raises(EvidenceError, match="another deal"):
        verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, proof))


# --- dishonest revealers ---------------------------------------------------------------------------------------------


def lying(unmask: Unmask, about: str, index: int) -> Unmask:
    body = unmask.parse()
    one = body.revealed[about]
    revealed = {**body.revealed, about: RevealedShare(one.kind, flipped(one.share), one.nonce)}
    raw = replace(body, revealed=revealed).encode()
    return Unmask(id=unmask.id, body=raw, signature=identity_of(index).sign("unmask", raw))


@pytest.mark.parametrize("about", ["site-0", "site-2", LIAR])
def test_a_wrong_answer_convicts_who_gave_it_and_the_sum_opens(about: str) -> None:
    """At n = 4 and t = 3 one lie used to stop the sum."""
    trial = Trial()
    survivors, unmasks = trial.answers(trial.deliver())
    unmasks[3] = lying(unmasks[3], about, 3)
    assert [judge_answer(survivors, unmask) for unmask in unmasks[:3]] == [None] * 3
    verdict = judge_answer(survivors, unmasks[3])
    assert verdict is not None
    trial.convicts(verdict, LIAR, Offence.WRONG_ANSWER)
    recover(survivors, unmasks)
    with pytest.raises(CommitmentError, match="wrong: site-3"):
        recover(survivors, unmasks[1:])


def test_a_dealer_cannot_show_another_deal_than_the_one_that_was_masked_over() -> None:
    trial = Trial()
    other = another_deal(trial)
    survivors, unmasks = trial.answers(trial.deliver())
    verdict = judge_answer(survivors, lying(unmasks[0], "site-1", 0))
    assert verdict is not None
    assert isinstance(verdict.proof, AnswerProof)
    forged = verdict.proof.model_copy(update={"deal": other.deal, "unmask": unmasks[0]})
    with pytest.raises(EvidenceError, match="not one of those"):
        verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, forged))
    sharers = [one for one in verdict.proof.sharers if one.id != LIAR]
    sharers.append(verdict.proof.sharers[-1].model_copy(update={"deal_hash": dealing.deal_hash(other.deal)}))
    forged = forged.model_copy(update={"sharers": tuple(sharers)})
    with pytest.raises(EvidenceError, match="over other deals"):
        verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, forged))


def test_a_machine_that_has_gone_bad_reveals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest member would otherwise be convicted for a bit of its memory."""
    trial = Trial()
    alive = trial.deliver()
    held = trial.machines["site-0"]._secrets
    assert held is not None
    pair = held.shares["site-1"]
    held.shares["site-1"] = replace(pair, self_mask=replace(pair.self_mask, share=flipped(pair.self_mask.share)))
    with pytest.raises(EncodingError, match="this machine is at fault"):
        trial.answers(alive)


# --- evidence that shows nothing -------------------------------------------------------------------------------------


def test_right_shares_convict_nobody() -> None:
    trial = Trial()
    survivors, unmasks = trial.answers(trial.deliver())
    wrong = judge_answer(survivors, lying(unmasks[0], "site-1", 0))
    assert wrong is not None
    assert isinstance(wrong.proof, AnswerProof)
    honest = wrong.proof.model_copy(update={"unmask": unmasks[0]})
    with pytest.raises(EvidenceError, match="as it was dealt"):
        verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, honest))


def test_the_secret_needs_a_threshold_of_shares_that_open() -> None:
    trial = Trial(other_secrets("self"))
    survivors, unmasks = trial.answers(trial.deliver())
    (verdict,) = judge_secrets(survivors, unmasks)
    assert isinstance(verdict.proof, SecretProof)
    good = verdict.proof.openings
    for openings, words in (
        (good[:2], "threshold"),
        ((good[0], good[0], good[1]), "threshold"),
        ((good[0].model_copy(update={"share": flipped(good[0].share)}), *good[1:]), "not as committed"),
    ):
        proof = verdict.proof.model_copy(update={"openings": openings})
        with pytest.raises(EvidenceError, match=words):
            verify_evidence(trial.roster, evidence_of(trial.document, "full", trial.cohort, proof))
    honest = Trial()
    survivors, unmasks = honest.answers(honest.deliver())
    openings = tuple(
        good[0].model_copy(update={"recipient": u.id, "share": one.share, "nonce": one.nonce})
        for u in unmasks[:3]
        for one in [u.parse().revealed["site-1"]]
    )
    proof = SecretProof(deal=honest.sharing.deal("site-1"), kind="self_mask", openings=openings)
    with pytest.raises(EvidenceError, match="make up the secret"):
        verify_evidence(honest.roster, evidence_of(honest.document, "full", honest.cohort, proof))


def forged_evidence(evidence: Evidence) -> dict[str, tuple[Evidence, type[Exception]]]:
    proof = evidence.proof
    assert isinstance(proof, ItemProof)
    body = proof.accusation.body
    forger = keys.SigningKey(bytes(32))
    resigned = proof.accusation.model_copy(update={"signature": forger.sign("accusation", body)})
    dealt = proof.deal.model_copy(update={"signature": forger.sign("deal", proof.deal.body)})
    unsigned = evidence.spec.model_copy(update={"signature": bytes(64)})
    return {
        "accusation": (in_proof(evidence, accusation=resigned), SignatureError),
        "deal": (in_proof(evidence, deal=dealt), SignatureError),
        "item": (in_proof(evidence, sealed=bytes(156)), EvidenceError),
        "joins": (evidence.model_copy(update={"joins": evidence.joins[:3]}), PeerProtocolError),
        "spec": (evidence.model_copy(update={"spec": unsigned}), SignatureError),
    }


def in_proof(evidence: Evidence, **changes: object) -> Evidence:
    return evidence.model_copy(update={"proof": evidence.proof.model_copy(update=changes)})


@pytest.mark.parametrize("what", ["accusation", "deal", "item", "joins", "spec"])
def test_forged_evidence_is_refused(what: str) -> None:
    trial = Trial(with_items(SPOILED["garbage"]))
    trial.deliver()
    (verdict,) = judge_accusation(trial.sharing, trial.accusations["site-0"], trial.items_for("site-0"))
    evidence, error = forged_evidence(trial.evidence(verdict))[what]
    with pytest.raises(error):
        verify_evidence(trial.roster, evidence)


def test_evidence_is_read_under_the_roster_of_its_session() -> None:
    trial = Trial(with_items(SPOILED["garbage"]))
    trial.deliver()
    (verdict,) = judge_accusation(trial.sharing, trial.accusations["site-0"], trial.items_for("site-0"))
    newer: Roster = make_roster(4, 1, version=2)
    with pytest.raises(StaleSpecError):
        verify_evidence(newer, trial.evidence(verdict))


def test_an_accusation_is_from_the_session_and_about_others() -> None:
    trial, other = Trial(), Trial()
    stale = accusation_of(other, LIAR, "site-0", bytes(32))
    with pytest.raises(EvidenceError, match="another session"):
        judge_accusation(trial.sharing, stale, trial.items_for(LIAR))
    with pytest.raises(EvidenceError, match="its own signer"):
        judge_accusation(trial.sharing, accusation_of(trial, LIAR, LIAR, bytes(32)), trial.items_for(LIAR))
    forged = accusation_of(trial, LIAR, "site-0", bytes(32)).model_copy(update={"id": "site-1"})
    with pytest.raises(SignatureError):
        judge_accusation(trial.sharing, forged, trial.items_for("site-1"))


def test_a_sharing_of_the_trial_is_what_everybody_masks_over() -> None:
    """Another line in one deal is another hU2, so the masks of who saw it do not cancel."""
    trial = Trial()
    other = another_deal(trial)
    deals = [shares.deal for name, shares in trial.outboxes.items() if name != LIAR]
    seen: Sharing = trial.cohort.sharing([*deals, other.deal])
    assert seen.ids == trial.sharing.ids
    assert seen.hu2 != trial.sharing.hu2
