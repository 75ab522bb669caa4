"""A charter has one form, its root's signature, and rules that no run goes against; its words leave nothing out."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.support.charters import chartered
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.charter import Charter, FirstModel, charter_rows, open_charter, sign_charter
from fedddpm_protocol.errors import CharterError, SignatureError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.wire.messages import SignedDocument

CHARTER, SPEC = chartered(make_spec(bits=24, chunk_coordinates=65536, initial_seed=b""))


def test_it_is_opened_under_the_root_key_alone() -> None:
    root = keys.SigningKey.generate()
    document = sign_charter(CHARTER, root)
    assert open_charter(document, root.public_key) == CHARTER
    with pytest.raises(SignatureError, match="not signed by the federation's root"):
        open_charter(document, keys.SigningKey.generate().public_key)
    other = SignedDocument(body=document.body + b"\0", signature=document.signature)
    with pytest.raises(SignatureError):
        open_charter(other, root.public_key)


def test_a_roster_or_a_specification_is_no_charter() -> None:
    root = keys.SigningKey.generate()
    body = canonical.encode(SPEC)
    with pytest.raises(SignatureError):  # signed for another purpose
        open_charter(SignedDocument(body=body, signature=root.sign("roster", body)), root.public_key)
    with pytest.raises(CharterError, match="not valid"):
        open_charter(SignedDocument(body=body, signature=root.sign("charter", body)), root.public_key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"number": 0}, "numbered from 1"),
        ({"rounds": 0}, "one round at least"),
        ({"ends": ("b", "a")}, "sorted"),
        ({"ends": ("run-1",)}, "its own run"),
        ({"min_cohort": 1}, "cohort of 1"),
        ({"run": "a/b"}, "letters, digits"),
        ({"method": "USPLIT"}, "cannot hide"),
        ({"training": {"learning_rate": float("nan")}}, "learning rate"),
        ({"training": {"min_steps": 0}}, "one at least"),
        ({"training": {"min_images": 0}}, "one at least"),
        ({"training": {"min_steps": 11}}, "leave none"),
        ({"training": {"optimizer": "sgd"}}, "unknown optimizer"),
        ({"training": {"objective": "velocity"}}, "unknown objective"),
        ({"training": {"schedule": "cosine"}}, "unknown schedule"),
        ({"travel": {"clip_norm": float("inf")}}, "clip norm"),
        ({"travel": {"bits": 9}}, "rings have"),
        ({"travel": {"first_bits": 8}}, "first sum"),
        ({"travel": {"clip": "never"}}, "unknown clipping"),
        ({"first_model": {"seed": b"s" * 32}}, "a seed, or weights"),
        ({"first_model": {"findings": ""}}, "a seed, or weights"),
    ],
)
def test_what_no_run_can_be(changes: dict[str, Any], said: str) -> None:
    def changed(record: Any, some: dict[str, Any]) -> Any:
        inner = {
            name: changed(getattr(record, name), value) if isinstance(value, dict) else value
            for name, value in some.items()
        }
        return replace(record, **inner)

    with pytest.raises(ValueError, match=said):
        changed(CHARTER, changes)


def test_the_seed_of_a_round_is_nobodys_choice() -> None:
    """Nothing that an aggregator makes up goes into it: not the attempt, the roster or the phases."""
    seed = CHARTER.encoding_seed(1, b"r" * 32)
    assert seed == CHARTER.encoding_seed(1, b"r" * 32)
    others = {
        CHARTER.encoding_seed(2, b"r" * 32),
        CHARTER.encoding_seed(1, b"s" * 32),
        replace(CHARTER, number=2).encoding_seed(1, b"r" * 32),
    }
    assert len(others | {seed}) == 4


def test_a_learning_rate_falls_evenly() -> None:
    rules = replace(CHARTER.training, schedule="linear", learning_rate=0.4)
    assert [rules.learning_rate_in(index, 4) for index in range(4)] == [0.4, 0.30000000000000004, 0.2, 0.1]
    assert [CHARTER.training.learning_rate_in(index, 4) for index in range(4)] == [1e-3] * 4


def leaves(record: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        inner = leaves(value, (*path, field.name)) if dataclasses.is_dataclass(value) else None
        found += inner if inner is not None else [((*path, field.name), value)]
    return found


OTHER: dict[str, Any] = {
    "objective": None,  # goes with what the network predicts: seen below
    "prediction": None,
    "optimizer": None,  # goes with the schedule
    "schedule": "linear",
    "clip": "adaptive",
    "weighting": "equal",
    "method": "UDEC",
    "preset": "fast",
    "bits": 20,
    "first_bits": 32,
    "seed": None,  # with findings: seen below
    "ends": ("run-0",),
    "turns": None,  # with TURN alone: in test_turns.py
    "learning_rate": 0.25,
    "momentum": 0.5,
    "multipliers": (1, 3),
    "findings": "4 tensors",
    "model_hash": b"m" * 32,
    "chunk_coordinates": 65544,
}


LEAVES = leaves(CHARTER)


@pytest.mark.parametrize(("path", "value"), LEAVES, ids=[".".join(path) for path, _ in LEAVES])
def test_its_words_say_every_field(path: tuple[str, ...], value: Any) -> None:
    """A change of any field is a change of what the person who signs reads, beside the hash."""
    other = OTHER.get(path[-1], value + 1 if isinstance(value, int | float) else f"{value}x")
    if other is None:
        assert not value or any(value in text for _, text in charter_rows(CHARTER))
        return

    def changed(record: Any, names: tuple[str, ...]) -> Any:
        new = other if len(names) == 1 else changed(getattr(record, names[0]), names[1:])
        return replace(record, **{names[0]: new})

    changed_charter: Charter = changed(CHARTER, path)
    before, after = ([row for row in charter_rows(one) if row[0] != "charter"] for one in (CHARTER, changed_charter))
    if path == ("number",):
        assert "number 2" in dict(charter_rows(changed_charter))["charter"]
    else:
        assert before != after


def test_its_words_tell_a_seed_from_given_weights() -> None:
    seeded = replace(CHARTER, first_model=FirstModel(b"m" * 32, b"s" * 32, ""))
    assert "public seed 7373" in dict(charter_rows(seeded))["first model"]
    assert dict(charter_rows(CHARTER))["found in its weights"] == "3 tensors"
    assert "found in its weights" not in dict(charter_rows(seeded))


def test_its_hash_is_that_of_all_it_says() -> None:
    assert CHARTER.hash != replace(CHARTER, min_cohort=4).hash
    assert canonical.decode(Charter, canonical.encode(CHARTER)) == CHARTER
    assert make_spec().terms.hash != SPEC.terms.hash  # one base, one training: another charter is another training
