"""A published sum is checked chunk by chunk; a false one convicts who signed it, and an honest one convicts nobody."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
from tests.protocol.support.checked import CHUNK, COORDINATES, ROOT, Published, published
from tests.protocol.support.sessions import SERVER

from fedddpm_protocol.errors import (
    CohortTooSmallError,
    CommitmentError,
    FalseSumError,
    MalformedError,
    PeerProtocolError,
    ResultError,
    SignatureError,
    SurvivorsError,
)
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.checked_sum import CheckedSum, chance_to_find, check_shown, draw_chunks, judge
from fedddpm_protocol.session.mask_seeds import self_mask_commitment
from fedddpm_protocol.wire.sum_proofs import FalseSum

CHUNKS = COORDINATES // CHUNK


def checked(sum_: Published) -> CheckedSum:
    return check_shown(sum_.survivors, sum_.part, sum_.shown)


@pytest.mark.parametrize("drops", [{}, {"site-3": "shares"}, {"site-1": "join", "site-4": "upload"}])
def test_an_honest_sum_passes_in_every_chunk(drops: dict[str, str]) -> None:
    sum_ = published(drops=drops)
    one = checked(sum_)
    assert one.chunks == CHUNKS
    for index in range(CHUNKS):
        one.require_chunk("full", index, sum_.words("full", index))
        assert judge(sum_.evidence("full", index), ROOT.public_key).false == ""
    one.require_chunk("full.weights", 0, sum_.words("full.weights", 0))


def test_a_moved_word_is_found_in_its_chunk_and_convicts() -> None:
    sum_ = published(moved=(2 * CHUNK + 5,))
    one = checked(sum_)
    for index in range(CHUNKS):
        if index != 2:
            one.require_chunk("full", index, sum_.words("full", index))
    with pytest.raises(FalseSumError, match="chunk 2 of 'full' is not the sum of what the survivors sent"):
        one.require_chunk("full", 2, sum_.words("full", 2))
    verdict = judge(FalseSum.model_validate_json(sum_.evidence("full", 2).model_dump_json()), ROOT.public_key)
    assert "chunk 2" in verdict.false
    assert not verdict.by_confirmations
    assert (verdict.server_public_key, verdict.run, verdict.round) == (SERVER.public_key, "run-1", 1)


def test_other_sums_of_weights_are_found_and_convict() -> None:
    sum_ = published(sums=(1, 2, 3))
    with pytest.raises(FalseSumError, match=r"full\.weights"):
        checked(sum_).require_chunk("full.weights", 0, sum_.words("full.weights", 0))
    assert judge(sum_.evidence("full.weights", 0), ROOT.public_key).false


@pytest.mark.parametrize("change", [{"hu3": b"\x01" * 32}, {"session_id": b"\x01" * 32}])
def test_a_result_about_other_uploads_convicts_by_the_confirmations(change: dict[str, bytes]) -> None:
    sum_ = published(**change)
    with pytest.raises(FalseSumError, match="other uploads than its survivors confirmed"):
        checked(sum_)
    evidence = FalseSum(confirmed=sum_.confirmed, result=sum_.result)
    assert judge(evidence, ROOT.public_key).by_confirmations
    few = evidence.confirmed.model_copy(update={"confirmations": sum_.confirmed.confirmations[:1]})
    with pytest.raises(CohortTooSmallError):
        judge(evidence.model_copy(update={"confirmed": few}), ROOT.public_key)


def test_what_is_shown_wrong_is_no_proof() -> None:
    sum_, other = published(), published()
    swapped = sum_.shown.model_copy(update={"opened": (*other.shown.opened[:-1], b"\x00" * 32)})
    with pytest.raises(ResultError, match="not those that were signed") as caught:
        check_shown(sum_.survivors, sum_.part, swapped)
    assert not isinstance(caught.value, FalseSumError)
    uploads = dict(sum_.shown.uploads)
    uploads["site-1"] = uploads["site-2"]
    with pytest.raises(SurvivorsError, match="site-1"):
        check_shown(sum_.survivors, sum_.part, sum_.shown.model_copy(update={"uploads": uploads}))
    with pytest.raises(CommitmentError):
        check_shown(sum_.survivors, sum_.part, sum_.shown.model_copy(update={"unmasks": sum_.shown.unmasks[:2]}))
    words = sum_.words("full", 0)
    for wrong in (words | {"site-1": bytes(CHUNK)}, {**words, "site-9": b""}, dict(list(words.items())[1:])):
        with pytest.raises(MalformedError):
            checked(sum_).require_chunk("full", 0, wrong)
    with pytest.raises(MalformedError):
        checked(sum_).require_chunk("full", CHUNKS, words)


def test_nobody_frames_an_honest_aggregator() -> None:
    """Whoever changes anything in an honest sum's papers has no evidence, or none that convicts."""
    sum_, lie = published(), published(moved=(0,))
    honest = sum_.evidence("full", 0)
    forged = [
        honest.model_copy(update={"words": honest.words | {"site-0": bytes(CHUNK)}}),
        honest.model_copy(update={"result": lie.result}),  # of another session of the same attempt, by the same key
        honest.model_copy(update={"shown": lie.shown}),
        honest.model_copy(update={"confirmed": sum_.confirmed.model_copy(update={"deals": sum_.confirmed.deals[:2]})}),
    ]
    for evidence in (forged[0], forged[2], forged[3]):
        with pytest.raises(PeerProtocolError) as caught:
            judge(evidence, ROOT.public_key)
        assert not isinstance(caught.value, FalseSumError)
    two = judge(forged[1], ROOT.public_key)  # two sums of one attempt, if t members are believed
    assert two.by_confirmations
    assert "other uploads" in two.false
    stranger = SigningKey(b"\x55" * 32)
    with pytest.raises(SignatureError):
        judge(published(moved=(0,), signed=stranger).evidence("full", 0), ROOT.public_key)
    with pytest.raises(SignatureError):
        judge(lie.evidence("full", 0), stranger.public_key)


def test_survivors_with_other_secrets_cannot_make_it_false() -> None:
    """A secret that was not committed to rebuilds nothing: the error is no verdict on the aggregator."""
    sum_ = published()
    body = sum_.survivors.sharing.cohort.body("site-0")
    assert self_mask_commitment("site-0", b"\x01" * 32) != body.self_mask_commitment
    unmasks = tuple(u for u in sum_.shown.unmasks if u.id != "site-0")[:2]
    with pytest.raises(CommitmentError):
        check_shown(sum_.survivors, sum_.part, sum_.shown.model_copy(update={"unmasks": unmasks}))


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_the_draw() -> None:
    below = random.Random(1).randrange
    assert draw_chunks(12, 5, 0.0, below) == ()
    assert draw_chunks(12, 5, 5.0, below) == tuple(range(12))
    assert draw_chunks(12, 5, 1e9, below) == tuple(range(12))
    assert all(len(draw_chunks(12, 128, 1.0, below)) >= 1 for _ in range(100))
    assert sum(map(len, (draw_chunks(12, 128, 0.1, below) for _ in range(2000)))) / 2000 == pytest.approx(
        0.11, abs=0.02
    )
    drawn = [draw_chunks(134, 5, 1.0, below) for _ in range(400)]
    assert sum(map(len, drawn)) / 400 == pytest.approx(134 / 5, rel=0.05)
    assert set().union(*drawn) == set(range(134))


@pytest.mark.parametrize(
    ("chunks", "false", "members", "effort"),
    [(4, 1, 5, 1.0), (134, 1, 5, 1.0), (134, 3, 20, 1.0), (12, 1, 20, 3.0), (4, 2, 20, 0.5), (4, 4, 128, 1.0)],
)
def test_a_lie_is_found_as_often_as_is_said(chunks: int, false: int, members: int, effort: float) -> None:
    below, rounds = random.Random(7).randrange, 1500
    lie = set(range(false))

    def found() -> bool:
        return any(lie & set(draw_chunks(chunks, members, effort, below)) for _ in range(members))

    expected = chance_to_find(chunks, false, members, effort, members)
    assert sum(found() for _ in range(rounds)) / rounds == pytest.approx(expected, abs=0.045)
    assert expected >= 1 - (1 - min(1, effort / members)) ** (false * members) - 1e-12


def test_the_default_finds_one_false_chunk_with_63_percent_at_least() -> None:
    for members in (3, 5, 20, 128):
        for chunks in (1, 4, 134, 5000):
            assert chance_to_find(chunks, 1, members, 1.0, members) > 0.63
            assert chance_to_find(chunks, chunks, members, 1.0, 1) == pytest.approx(1.0)
    assert chance_to_find(4, 1, 5, 0.0, 5) == 0.0


def test_results_of_parts_are_not_mixed_up() -> None:
    sum_ = published()
    assert hashlib.sha256(sum_.words("full", 0)["site-0"]).digest() == sum_.shown.uploads["site-0"]["full"][0]
    other = replace(sum_.part, survivors=sum_.part.survivors[:-1])
    with pytest.raises(FalseSumError):
        check_shown(sum_.survivors, other, sum_.shown)
