"""The roster: only the root's, never an older one, never with weaker rules; policy and spec against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.support.sessions import SERVER, identity_of, make_roster
from tests.protocol.support.specs import ARCHITECTURE, make_part_result, make_result, make_spec, manifest_of

from fedddpm_protocol.agreement.documents import open_result, open_spec, sign_result, sign_spec
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture, TensorSpec
from fedddpm_protocol.agreement.policy import LocalPolicy
from fedddpm_protocol.agreement.roster import Member, Release, Roster, open_roster, sign_roster
from fedddpm_protocol.agreement.spec import RoundSpec, part_spec
from fedddpm_protocol.agreement.terms import OuterOptimizer
from fedddpm_protocol.errors import (
    OlderRosterError,
    PolicyError,
    ResultError,
    RosterError,
    SignatureError,
    SpecError,
    StaleRosterError,
    StaleSpecError,
    UnknownMemberError,
)
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.messages import SignedDocument

ROOT = SigningKey(b"\x99" * 32)
ROSTER = make_roster(5, 1)


def policy(**changes: Any) -> LocalPolicy:
    manifests = {"full": manifest_of(Method.FULL, "full")}
    return LocalPolicy(**{"architecture_hash": ARCHITECTURE.hash, "manifests": manifests, **changes})


def accept(signed: SignedDocument, roster: Roster, limits: LocalPolicy) -> RoundSpec:
    """What an institution does with a specification before anything else."""
    spec = open_spec(signed, roster)
    limits.check(spec, roster)
    return spec


def flip(data: bytes, position: int = -1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def test_a_signed_roster_comes_back_whole() -> None:
    assert open_roster(sign_roster(ROSTER, ROOT), ROOT.public_key, newest_seen=1) == ROSTER


@pytest.mark.parametrize("position", range(0, 400, 13))
def test_every_changed_byte_of_a_roster_is_refused(position: int) -> None:
    signed = sign_roster(ROSTER, ROOT)
    with pytest.raises(SignatureError):
        open_roster(SignedDocument(body=flip(signed.body, position), signature=signed.signature), ROOT.public_key)
    with pytest.raises(SignatureError):
        open_roster(SignedDocument(body=signed.body, signature=flip(signed.signature, position % 64)), ROOT.public_key)


def test_a_roster_of_another_root_is_refused() -> None:
    with pytest.raises(SignatureError):
        open_roster(sign_roster(ROSTER, SERVER), ROOT.public_key)


def test_a_signature_for_another_purpose_is_refused() -> None:
    body = canonical.encode(ROSTER)
    with pytest.raises(SignatureError):
        open_roster(SignedDocument(body=body, signature=ROOT.sign("spec", body)), ROOT.public_key)


def test_an_older_roster_is_refused_and_the_same_one_is_not() -> None:
    signed = sign_roster(make_roster(5, 1, version=3), ROOT)
    assert open_roster(signed, ROOT.public_key, newest_seen=3).version == 3
    with pytest.raises(OlderRosterError):
        open_roster(signed, ROOT.public_key, newest_seen=4)


@pytest.mark.parametrize("damage", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: b + bytes(8), lambda b: b""])
def test_a_signed_roster_of_the_wrong_form_is_refused(damage: Any) -> None:
    body = damage(canonical.encode(ROSTER)) or b"x"
    with pytest.raises(RosterError):
        open_roster(SignedDocument(body=body, signature=ROOT.sign("roster", body)), ROOT.public_key)


MEMBERS = ROSTER.members
BAD_ROSTERS = {
    "unsorted": {"members": MEMBERS[::-1]},
    "same-id": {"members": (MEMBERS[0], replace(MEMBERS[1], id=MEMBERS[0].id))},
    "same-key": {"members": (MEMBERS[0], replace(MEMBERS[1], public_key=MEMBERS[0].public_key))},
    "aggregator-is-member": {"server_public_key": MEMBERS[0].public_key},
    "short-server-key": {"server_public_key": bytes(31)},
    "version-0": {"version": 0},
    "n_min-below-3": {"n_min": 2},
    "n_min-below-c_max-plus-2": {"n_min": 3, "c_max": 2},
    "n_min-1": {"n_min": 1, "c_max": 0},
    "name": {"federation": "../etc"},
    "too-many": {"members": tuple(Member(f"m{i:03}", i.to_bytes(32, "big")) for i in range(129))},
}


@pytest.mark.parametrize("changes", BAD_ROSTERS.values(), ids=BAD_ROSTERS)
def test_rules_a_roster_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(ROSTER, **changes)


@pytest.mark.parametrize(("n", "c_max", "t"), [(3, 0, 2), (4, 0, 3), (4, 1, 3), (5, 1, 4), (128, 44, 87)])
def test_thresholds(n: int, c_max: int, t: int) -> None:
    roster = make_roster(3, c_max, max(3, c_max + 2))
    assert roster.threshold(n) == t
    assert 2 * t > n + c_max  # two quorums share more members than may lie
    assert t - c_max >= 2 or n < c_max + 2


def test_unknown_member() -> None:
    with pytest.raises(UnknownMemberError):
        ROSTER.public_key("site-9")


@pytest.mark.parametrize(
    ("newer", "tightens"),
    [
        (make_roster(5, 1, version=2), False),
        (make_roster(6, 1, version=2), False),
        (make_roster(4, 1, version=2), True),
        (make_roster(5, 2, 4, version=2), True),
        (replace(ROSTER, version=2, members=(*MEMBERS[:4], replace(MEMBERS[4], public_key=bytes(32)))), True),
    ],
    ids=["same", "more", "removed", "c_max", "rekeyed"],
)
def test_what_ends_a_running_session(newer: Roster, tightens: bool) -> None:
    assert ROSTER.tightens_against(newer, ROSTER.ids) is tightens


@pytest.mark.parametrize(
    "release",
    [
        (bytes(31), "full", ("a", "b"), ("a",)),
        (bytes(32), "full", ("b", "a"), ("a",)),
        (bytes(32), "full", ("a", "a"), ("a",)),
        (bytes(32), "full", ("a",), ()),
    ],
)
def test_bad_releases(release: Any) -> None:
    with pytest.raises(ValueError):
        Release(*release)


# --- specs and results against roster and policy ---------------------------------------------------------------------


def test_a_good_spec_passes() -> None:
    spec = make_spec(ROSTER)
    assert accept(sign_spec(spec, SERVER), ROSTER, policy()) == spec


def test_a_spec_must_be_signed_by_the_rosters_aggregator() -> None:
    signed = sign_spec(make_spec(ROSTER), identity_of(0))
    with pytest.raises(SignatureError) as caught:
        accept(signed, ROSTER, policy())
    assert caught.value.blame == "aggregator"
    good = sign_spec(make_spec(ROSTER), SERVER)
    for position in range(0, len(good.body), 29):
        with pytest.raises(SignatureError):
            accept(SignedDocument(body=flip(good.body, position), signature=good.signature), ROSTER, policy())


@pytest.mark.parametrize(
    "changes",
    [{"federation": "other"}, {"roster_hash": bytes(32)}, {"largest_cohort": 6}],
    ids=lambda c: next(iter(c)),
)
def test_a_spec_of_another_federation_or_roster_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        open_spec(sign_spec(make_spec(ROSTER, **changes), SERVER), ROSTER)
    assert caught.type is SpecError, "another roster would not help"


@pytest.mark.parametrize(("made_for", "stale"), [(2, StaleRosterError), (0, StaleSpecError)])
def test_a_spec_for_another_version_of_the_roster_says_which_of_the_two_is_stale(
    made_for: int, stale: type[SpecError]
) -> None:
    signed = sign_spec(make_spec(ROSTER, roster_version=made_for, roster_hash=bytes(32)), SERVER)
    with pytest.raises(SpecError, match=f"made for roster version {made_for}, you hold version 1") as caught:
        open_spec(signed, ROSTER)
    assert caught.type is stale
    assert (StaleRosterError.code, StaleSpecError.code) == ("stale-roster", "stale-spec")


def test_a_spec_is_opened_without_a_policy() -> None:
    spec = make_spec(ROSTER, epochs=1000)
    assert open_spec(sign_spec(spec, SERVER), ROSTER) == spec


@pytest.mark.parametrize("damage", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: b + bytes(8)])
def test_a_signed_spec_of_the_wrong_form_is_refused(damage: Any) -> None:
    body = damage(canonical.encode(make_spec(ROSTER)))
    with pytest.raises(SpecError):
        accept(SignedDocument(body=body, signature=SERVER.sign("spec", body)), ROSTER, policy())


def test_a_spec_without_the_hash_of_its_terms_is_refused() -> None:
    older = replace(make_spec(ROSTER), terms_hash=b"")
    with pytest.raises(SpecError, match="does not name its terms"):
        accept(sign_spec(older, SERVER), ROSTER, policy())


OTHER = replace(ARCHITECTURE, base_dim=16)
OUTSIDE = {
    "epochs": ({"epochs": 9}, {"max_epochs": 8}),
    "max_steps": ({"max_steps": 9}, {"max_steps": 8}),
    "learning_rate": ({"learning_rate": 0.2}, {"max_learning_rate": 0.1}),
    "clip_norm": ({"clip_norm": 9.0}, {"max_clip_norm": 8.0}),
    "outer_momentum": ({"outer": OuterOptimizer(1.0, 0.6)}, {"max_outer_momentum": 0.5}),
    "no seed": ({"initial_seed": b""}, {"allow_weights": False}),
    "architecture": ({"architecture": OTHER}, {}),
    "bits": ({}, {"min_bits": 33}),
    "c_max": ({}, {"c_max": 2}),
    "min_cohort": ({}, {"min_cohort": 6}),
    "disclosed samples": ({"weighting": "disclosed"}, {"discloses_samples": False}),
}


@pytest.mark.parametrize(("spec", "limits"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_spec_outside_the_local_policy_is_refused(spec: dict[str, Any], limits: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        accept(sign_spec(make_spec(ROSTER, **spec), SERVER), ROSTER, policy(**limits))


def permuted(spec: RoundSpec, manifest: tuple[TensorSpec, ...]) -> RoundSpec:
    return replace(spec, parts=(part_spec("full", manifest),))


def test_a_permuted_or_renamed_model_is_no_fresh_base() -> None:
    spec = make_spec(ROSTER)
    tensors = spec.parts[0].manifest
    for manifest in (tensors[::-1], (replace(tensors[0], name="encoder.v"), *tensors[1:])):
        with pytest.raises(PolicyError, match="permuted"):
            accept(sign_spec(permuted(spec, manifest), SERVER), ROSTER, policy())


def test_two_parties_only_by_opt_in() -> None:
    roster = make_roster(2, 0, 2)
    signed = sign_spec(make_spec(roster), SERVER)
    with pytest.raises(PolicyError, match="not from the other"):
        accept(signed, roster, policy())
    assert accept(signed, roster, policy(allow_two_party=True)).roster_version == 1


def test_the_two_party_opt_in_does_not_lower_a_cohort_that_was_asked_for() -> None:
    roster = make_roster(5, 0, 2)
    assert policy(allow_two_party=True).floor(roster) == 2
    assert policy(allow_two_party=True, min_cohort=4).floor(roster) == 4
    assert policy(allow_two_party=False).floor(roster) == 3
    assert policy(allow_two_party=True).floor(make_roster(5, 1)) == 3


BAD_SPECS: dict[str, dict[str, Any]] = {
    "protocol": {"protocol": "fedddpm/sa/1"},
    "method": {"method": "HALF"},
    "parts": {"parts": ()},
    "round": {"round": 3},
    "weighting": {"weighting": "guess"},
    "clip-zero": {"clip_norm": 0.0},
    "clip-nan": {"clip_norm": float("nan")},
    "clip-inf": {"clip_norm": float("inf")},
    "clip-tiny": {"clip_norm": 1e-320},
    "clip-huge": {"clip_norm": 1e300},
    "rate-nan": {"learning_rate": float("nan")},
    "cohort-1": {"largest_cohort": 1},
    "cohort-129": {"largest_cohort": 129},
    "cap": {"weight_cap": 0},
    "chunk-0": {"chunk_coordinates": 0},
    "chunk-7": {"chunk_coordinates": 7},
    "epochs": {"epochs": 0},
    "batch": {"batch_size": 0},
    "time-zero": {"join_s": 0.0},
    "time-nan": {"unmask_s": float("nan")},
    "time-inf": {"shares_s": float("inf")},
    "roster-hash": {"roster_hash": bytes(31)},
    "base-hash": {"base_model_hash": bytes(33)},
    "no-previous": {"previous_result": b""},
    "first-with-previous": {"round": 0},
    "too-wide": {"bits": 49},
    "too-many-chunks": {"coordinates": 8 * 2**16 + 1},
}


@pytest.mark.parametrize("changes", BAD_SPECS.values(), ids=BAD_SPECS)
def test_rules_a_spec_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_spec(ROSTER, **changes)


def test_usplit_cannot_hide_counts() -> None:
    with pytest.raises(ValueError, match="USPLIT"):
        make_spec(ROSTER, Method.USPLIT, weighting="hidden")


@pytest.mark.parametrize(
    "changes", [{"preset": "huge"}, {"image_size": 4}, {"channels": 0}], ids=lambda c: next(iter(c))
)
def test_rules_an_architecture_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Architecture(
            **{"preset": "tiny", "image_size": 28, "channels": 1, "base_dim": 8, "multipliers": (1,), **changes}
        )


def test_results() -> None:
    result = make_result(make_spec(ROSTER))
    signed = sign_result(result, SERVER)
    assert open_result(signed, ROSTER) == result
    with pytest.raises(SignatureError):
        open_result(SignedDocument(body=flip(signed.body), signature=signed.signature), ROSTER)
    with pytest.raises(SignatureError):
        open_result(sign_result(result, identity_of(1)), ROSTER)
    with pytest.raises(ResultError):
        open_result(sign_result(replace(result, federation="other"), SERVER), ROSTER)
    for body in (signed.body + b"\0", signed.body[:-1], signed.body + bytes(8)):
        with pytest.raises(ResultError):
            open_result(SignedDocument(body=body, signature=SERVER.sign("result", body)), ROSTER)


def test_a_result_is_no_spec() -> None:
    signed = sign_result(make_result(make_spec(ROSTER)), SERVER)
    with pytest.raises(SignatureError):
        accept(signed, ROSTER, policy())


BAD_RESULTS: dict[str, dict[str, Any]] = {
    "nothing-opened": {"parts": (make_part_result(opened=False),)},
    "twice": {"parts": (make_part_result(), make_part_result())},
    "model-hash": {"model_hash": bytes(31)},
    "spec-hash": {"spec_hash": b""},
    "previous": {"previous_result": b""},
    "protocol": {"protocol": "x"},
}


@pytest.mark.parametrize("changes", BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_rules_a_result_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_result(make_spec(ROSTER), **changes)


BAD_PARTS: dict[str, dict[str, Any]] = {
    "sums": {"sums": (1, 2)},
    "no-weight": {"sums": (0, 1, 1)},
    "one-survivor": {"survivors": ("site-0",)},
    "unsorted": {"survivors": ("site-1", "site-0")},
    "strangers": {"survivors": ("site-0", "site-9")},
    "hu3": {"hu3": b""},
    "session": {"session_id": bytes(31)},
    "digest": {"opened_digest": b""},
}


@pytest.mark.parametrize("changes", BAD_PARTS.values(), ids=BAD_PARTS)
def test_rules_an_opened_part_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_part_result(**changes)
