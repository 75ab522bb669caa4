"""What a model file says of itself: texts that stay as they are, and nothing else is read."""

from __future__ import annotations

import json

import pytest

from fedddpm_protocol.agreement.model_layout import Architecture, TensorSpec
from fedddpm_protocol.agreement.model_metadata import (
    ARCHITECTURE_KEY,
    INITIAL_SEED_KEY,
    MANIFEST_KEY,
    architecture_from_json,
    architecture_json,
    initial_seed_of,
    manifests_json,
    manifests_of,
)

ARCHITECTURE = Architecture("tiny", 28, 1, 8, (1, 2), classes=10)
MANIFESTS = {
    "encoder": (TensorSpec("encoder.a", (8, 1, 3, 3)), TensorSpec("encoder.b", (8,))),
    "decoder": (TensorSpec("decoder.a", (4,)),),
}


def test_the_texts_in_files_stay_as_they_are() -> None:
    assert (ARCHITECTURE_KEY, MANIFEST_KEY, INITIAL_SEED_KEY) == (
        "fedddpm.architecture",
        "fedddpm.manifest",
        "fedddpm.initial_seed",
    )
    assert architecture_json(ARCHITECTURE) == (
        '{"preset": "tiny", "image_size": 28, "channels": 1, "base_dim": 8, "multipliers": [1, 2], "classes": 10}'
    )
    assert architecture_json(ARCHITECTURE, sort_keys=True) == (
        '{"base_dim": 8, "channels": 1, "classes": 10, "image_size": 28, "multipliers": [1, 2], "preset": "tiny"}'
    )
    assert manifests_json(MANIFESTS) == (
        '{"encoder": [["encoder.a", [8, 1, 3, 3]], ["encoder.b", [8]]], "decoder": [["decoder.a", [4]]]}'
    )


def test_they_read_back() -> None:
    for sort_keys in (False, True):
        assert architecture_from_json(architecture_json(ARCHITECTURE, sort_keys=sort_keys)) == ARCHITECTURE
    read = manifests_of(manifests_json(MANIFESTS))
    assert read == MANIFESTS
    assert list(read) == list(MANIFESTS)
    assert initial_seed_of("0a" * 32) == b"\x0a" * 32
    assert initial_seed_of(None) == b""


def test_an_architecture_from_before_there_were_classes_has_none() -> None:
    fields = json.loads(architecture_json(ARCHITECTURE))
    del fields["classes"]
    assert architecture_from_json(json.dumps(fields)).classes == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 1001},
        {"preset": "huge"},
        {"image_size": "28 pixels"},
        {"base_dim": -1},  # no specification can hold these two
        {"multipliers": [1, 2**64]},
        {"further": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_architecture_than_a_specification_can_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        architecture_from_json(json.dumps({**json.loads(architecture_json(ARCHITECTURE)), **changes}))


@pytest.mark.parametrize("text", ["", "null", "[" * 10**5, '{"encoder": 1}', '{"encoder": [["a", [1.5]]]}'])
def test_another_manifest_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        manifests_of(text)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize("text", ["", "0a" * 31, "0a" * 33, "0A" * 32, "zz" * 32])
def test_another_seed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"initial_seed is not 64 hex digits"):
        initial_seed_of(text)
