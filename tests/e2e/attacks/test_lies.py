"""A lying aggregator: a proxy alters single replies to one institution. None of it ever becomes a wrong model."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, wait_until

import fedddpm.updates.contribution
from fedddpm import LocalPolicyOptions
from fedddpm.errors import ModelError, PolicyError, TransportError
from fedddpm.transport.problems import NotEnrolledError
from fedddpm_protocol.agreement.documents import sign_result, sign_spec
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.encoder import ValuesEncoder
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument

Words = npt.NDArray[np.unsignedinteger]
NOT_THIS_MODEL = bytes(range(32))


def flip_last_byte(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def in_state(change: Callable[[SignedDocument], SignedDocument]) -> Callable[[bytes], bytes]:
    """A change of the specification inside ``/v1/state``."""

    def alter(body: bytes) -> bytes:
        state = json.loads(body)
        if state["spec"] is not None:
            state["spec"] = json.loads(change(SignedDocument.model_validate(state["spec"])).model_dump_json())
        return json.dumps(state).encode()

    return alter


def in_results(change: Callable[[SignedDocument], SignedDocument]) -> Callable[[bytes], bytes]:
    """A change of every result in ``/v1/results``."""

    def alter(body: bytes) -> bytes:
        changed = [change(SignedDocument.model_validate(item)) for item in json.loads(body)["results"]]
        return json.dumps({"results": [json.loads(item.model_dump_json()) for item in changed]}).encode()

    return alter


def more_epochs(document: SignedDocument) -> RoundSpec:
    return canonical.decode(RoundSpec, document.body).with_terms_hash(epochs=1000)


def another_model(document: SignedDocument) -> RoundResult:
    return dataclasses.replace(canonical.decode(RoundResult, document.body), model_hash=NOT_THIS_MODEL)


def without(key: str, member: str) -> Callable[[bytes], bytes]:
    """One entry less in the list ``key`` of a reply: the one that speaks of ``member``."""

    def speaks_of(item: dict[str, str]) -> bool:
        return item.get("id") == member or member.encode() in base64.b64decode(item.get("body", ""))

    def alter(body: bytes) -> bytes:
        reply = json.loads(body)
        reply[key] = [item for item in reply[key] if not speaks_of(item)]
        return json.dumps(reply).encode()

    return alter


def honest_again(fed: Federation, member: str) -> None:
    """The lied-to institution starts again, now with the truth."""
    del fed.proxies[member]
    fed.join_here(member)


# --- before training --------------------------------------------------------------------------------------------------


def refused_alone(fed: Federation, **changes: Any) -> Exception:
    """The error of the first institution, which asks the lying aggregator alone; it sent no JOIN."""
    member = fed.members[0]
    fed.join_here(member, **changes)
    error = fed.failure_of(member)
    assert not fed.proxy(member).requests("POST")
    return error


def test_another_first_model(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start(seeded=False)
    fed.proxy(fed.members[0]).alter("GET /v1/models/", flip_last_byte)
    error = refused_alone(fed)
    assert isinstance(error, ModelError)
    assert "not the one its signed specification names" in str(error)


def test_more_epochs_under_the_old_signature(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start()
    lie = in_state(lambda d: SignedDocument(body=canonical.encode(more_epochs(d)), signature=d.signature))
    fed.proxy(fed.members[0]).alter("GET /v1/state", lie)
    error = refused_alone(fed)
    assert isinstance(error, TransportError)
    assert "not signed by the aggregator that the roster names" in str(error)


def test_more_epochs_than_the_root_has_signed(new_federation: NewFederation) -> None:
    """Signed by the aggregator itself: then the charter decides."""
    fed = new_federation()
    fed.start()
    fed.proxy(fed.members[0]).alter("GET /v1/state", in_state(lambda d: sign_spec(more_epochs(d), fed.context.key)))
    error = refused_alone(fed)
    assert isinstance(error, TransportError)
    assert "1000 as epochs, from the charter of run run-1 follows" in str(error)


def test_more_epochs_than_the_institution_allows(new_federation: NewFederation) -> None:
    """Signed by the root itself: then the local policy decides."""
    fed = new_federation()
    fed.start(epochs=1000)
    error = refused_alone(fed, policy=LocalPolicyOptions(max_epochs=20))
    assert isinstance(error, PolicyError)
    assert "1000 as epochs, your policy allows 20" in str(error)


def test_an_older_roster(new_federation: NewFederation) -> None:
    fed = new_federation("abcd")
    old = fed.roster.read_bytes()
    fed.sign_roster("remove", "--member", fed.members[3])
    fed.install_roster()
    fed.start()
    victim, *others = fed.members[:3]
    fed.join_here(victim, *others, rounds=1)
    fed.end(victim, *others)
    fed.proxy(victim).alter("GET /v1/roster", lambda _: old)
    error = refused_alone(fed)
    assert isinstance(error, PolicyError)
    assert "roster version 1 is older than version 2, already seen" in str(error)
    assert "call the federation's coordinator" in str(error)


# --- in a session -----------------------------------------------------------------------------------------------------


def test_a_cohort_without_one_member(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.start(rounds=2)
    victim, hidden = fed.members[0], fed.members[3]
    fed.proxy(victim).alter("GET .*/cohort", without("joins", hidden))
    fed.join_here()
    error = fed.failure_of(victim)
    assert isinstance(error, TransportError)
    honest_again(fed, victim)
    fed.end()
    fed.check_round(0, fed.members[1:])
    fed.check_round(1, fed.members)
    fed.check_models()


def test_survivors_without_one_member(new_federation: NewFederation) -> None:
    """The victim signs another set than the others; its confirmation helps nobody, and the true sum is opened."""
    fed = new_federation("abcd", c_max=1)
    fed.start()
    victim, hidden = fed.members[0], fed.members[3]
    fed.proxy(victim).alter("GET .*/survivors", without("survivors", hidden))
    fed.join_here()
    error = fed.failure_of(victim)
    assert isinstance(error, TransportError)
    assert not fed.proxy(victim).requests("POST .*/unmask")
    honest_again(fed, victim)
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()


# --- after the sum ----------------------------------------------------------------------------------------------------


def resigned(fed: Federation) -> Callable[[SignedDocument], SignedDocument]:
    return lambda document: sign_result(another_model(document), fed.context.key)


def first_part(**changes: object) -> Callable[[Federation], Callable[[SignedDocument], SignedDocument]]:
    """The first part of the result otherwise, and signed."""

    def of(fed: Federation) -> Callable[[SignedDocument], SignedDocument]:
        def lie(document: SignedDocument) -> SignedDocument:
            result = canonical.decode(RoundResult, document.body)
            parts = (dataclasses.replace(result.parts[0], **changes), *result.parts[1:])
            return sign_result(dataclasses.replace(result, parts=parts), fed.context.key)

        return lie

    return of


def forged(fed: Federation) -> Callable[[SignedDocument], SignedDocument]:
    return lambda document: SignedDocument(body=canonical.encode(another_model(document)), signature=document.signature)


@pytest.mark.parametrize(
    ("path", "lie", "said"),
    [
        ("GET .*/opened/", lambda fed: flip_last_byte, "is not the one that was signed"),
        ("GET /v1/results[?]", lambda fed: in_results(resigned(fed)), "not the one the aggregator signed"),
        ("GET /v1/results[?]", lambda fed: in_results(first_part(part="encoder")(fed)), "had no part encoder"),
        ("GET /v1/results[?]", lambda fed: in_results(first_part(norm=123.0)(fed)), "the signed norm 123 of part"),
        ("GET /v1/results[?]", lambda fed: in_results(forged(fed)), "not signed by the aggregator"),
    ],
    ids=["flipped-byte", "signed-other-model", "signed-other-part", "signed-other-norm", "unsigned-other-model"],
)
def test_a_wrong_result(
    new_federation: NewFederation, path: str, lie: Callable[[Federation], Callable[[bytes], bytes]], said: str
) -> None:
    fed = new_federation()
    fed.start()
    victim = fed.members[0]
    fed.proxy(victim).alter(path, lie(fed))
    fed.join_here()
    error = fed.failure_of(victim)
    assert isinstance(error, TransportError)
    assert said in str(error)
    assert fed.site_rounds(victim) == [], "nothing of the lie was taken"
    honest_again(fed, victim)
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()


# --- a lying institution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["hidden", "equal"])
def test_a_magnified_update_is_held(
    new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """A thousandfold update: the round is held and the model stays; the root removes the liar and the others go on.

    Few samples beside the cap leave its ring room for it; with equal weights it leaves the ring, and is held when the
    same institutions are asked for it in the widest.
    """
    fed = new_federation("abcd", c_max=1)
    fed.start(clip_norm=1.0, weighting=weighting)
    liar, *honest = fed.members

    class Magnifying(ValuesEncoder):
        magnify = False

        def chunk(self, index: int) -> Words:
            words = super().chunk(index)
            return words * words.dtype.type(1000) if self.magnify else words

    def encoder(*arguments: object, **settings: object) -> ValuesEncoder:
        made = Magnifying(*arguments, **settings)  # type: ignore[arg-type]
        made.magnify = threading.current_thread().name == liar
        return made

    monkeypatch.setattr(fedddpm.updates.contribution, "ValuesEncoder", encoder)
    fed.join_here()
    wait_until(lambda: fed.state().status == "stalled", "a round that is held")
    line = fed.lines()[-1]
    assert (line.attempt, line.bits) == ((0, 24) if weighting == "hidden" else (1, 32))
    assert "an institution did not clip its update" in str(line.reason)
    assert "The round is held and the model stays as it is" in str(line.reason)
    assert fed.results() == []
    state = fed.state()
    assert state.status == "stalled"
    assert "the round is held" in str(state.reason)
    fed.sign_roster("remove", "--member", liar)
    release = ("--base", fed.spec().base_model_hash.hex(), "--part", "decoder")
    fed.sign_roster("release", *release, "--old", ",".join(fed.members), "--new", ",".join(honest))
    fed.install_roster()
    assert isinstance(fed.failure_of(liar), NotEnrolledError)
    fed.end(*honest)
    fed.check_round(0, honest)
    fed.check_models(members=honest)
