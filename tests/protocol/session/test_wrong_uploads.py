"""Masking and upload: each wrong message raises its own error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.protocol.support.faults import flip, is_forgotten
from tests.protocol.support.sessions import (
    identity_of,
    inputs_for,
    mask_all,
    masking_machine,
)
from tests.protocol.test_vectors import Replay

from fedddpm_protocol.agreement.chunks import segment_digest
from fedddpm_protocol.errors import (
    EncodingError,
    MalformedError,
    MaskReuseError,
    PhaseError,
    SignatureError,
    UnknownMemberError,
)
from fedddpm_protocol.session.cohort import samples_message
from fedddpm_protocol.wire.messages import UploadManifest


def test_the_same_mask_never_covers_two_contents() -> None:
    machine = masking_machine()
    first = machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32))
    assert machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32)) == first
    with pytest.raises(MaskReuseError):
        machine.mask_chunk("part", 0, np.arange(1, 9, dtype=np.uint32))
    assert is_forgotten(machine)
    with pytest.raises(PhaseError):
        machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32))


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (np.zeros(7, np.uint32), 0),
        (np.zeros(9, np.uint32), 0),
        (np.zeros(8, np.uint64), 0),
        (np.zeros(8, np.int32), 0),
        (np.zeros((1, 8), np.uint32), 0),
        (np.zeros(8, np.uint32), 2),  # the last chunk has four
    ],
)
def test_chunks_of_another_size_or_type(words: Any, index: int) -> None:
    with pytest.raises(EncodingError):
        masking_machine().mask_chunk("part", index, words)


@pytest.mark.parametrize(("segment", "index"), [("part", 3), ("part", -1), ("other", 0), ("part.weights", 1)])
def test_chunks_that_do_not_exist(segment: str, index: int) -> None:
    with pytest.raises(MalformedError):
        masking_machine().mask_chunk(segment, index, np.zeros(8, np.uint32))


def test_an_upload_needs_all_chunks() -> None:
    machine = masking_machine()
    machine.mask_chunk("part", 0, np.zeros(8, np.uint32))
    with pytest.raises(EncodingError, match="never masked"):
        machine.finish_upload()


@pytest.mark.parametrize(("disclosed", "samples"), [(False, 5), (True, None)])
def test_counts_are_sent_exactly_where_they_are_disclosed(disclosed: bool, samples: int | None) -> None:
    machine = masking_machine(discloses_samples=disclosed)
    mask_all(machine, inputs_for("site-0", machine.plan.segments))
    with pytest.raises(EncodingError, match="exactly where"):
        machine.finish_upload(samples)


def changed_manifests(good: UploadManifest, names: list[str]) -> dict[str, dict[str, Any]]:
    first = names[0]
    chunks = dict(good.chunks)
    return {
        "missing-chunk": {**chunks, first: chunks[first][1:]},
        "extra-chunk": {**chunks, first: (*chunks[first], bytes(32))},
        "short-digest": {**chunks, first: (chunks[first][0][:-1], *chunks[first][1:])},
        "long-digest": {**chunks, first: (chunks[first][0] + b"\0", *chunks[first][1:])},
        "missing-segment": {name: chunks[name] for name in names[1:]},
        "extra-segment": {**chunks, "other": (bytes(32),)},
        "no-chunks": {},
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing-chunk", "extra-chunk", "short-digest", "long-digest"),
        *("missing-segment", "extra-segment", "no-chunks"),
    ],
)
def test_manifests_that_do_not_fit_the_plan(replay: Replay, case: str) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    chunks = changed_manifests(replay.manifests[name], [s.name for s in replay.plan.segments])[case]
    with pytest.raises(MalformedError):
        replay.sharing.verify_manifest(name, UploadManifest.model_construct(chunks=chunks))


def test_manifests_of_strangers_and_of_members_that_did_not_share(replay: Replay) -> None:
    replay.to_uploads()
    manifest = replay.manifests[replay.case["u3"][0]]
    outside = set(replay.case["u1"]) - set(replay.case["u2"])
    for name in ("stranger", *outside):
        with pytest.raises(UnknownMemberError):
            replay.sharing.verify_manifest(name, manifest)


def test_every_chunk_digest_is_in_the_upload_digest(replay: Replay) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    manifest = replay.manifests[name]
    digests = {replay.sharing.verify_manifest(name, manifest)}
    for segment, chunks in manifest.chunks.items():
        for index, digest in enumerate(chunks):
            changed = {**manifest.chunks, segment: (*chunks[:index], flip(digest), *chunks[index + 1 :])}
            digests.add(replay.sharing.verify_manifest(name, UploadManifest(chunks=changed)))
    assert len(digests) == 1 + sum(len(chunks) for chunks in manifest.chunks.values())
    first = replay.plan.segments[0]
    with pytest.raises(MalformedError):
        segment_digest(first, 8, manifest.chunks[first.name])  # cut at another size


def test_disclosed_counts_are_signed() -> None:
    machine = masking_machine(discloses_samples=True)
    mask_all(machine, inputs_for("site-0", machine.plan.segments))
    manifest = machine.finish_upload(42)
    sharing = machine._sharing
    assert sharing is not None
    for changes in (
        {"samples": 43},
        {"samples_signature": flip(manifest.samples_signature or b"")},
        {"samples_signature": identity_of(1).sign("samples", samples_message(sharing.cohort.session_id, "site-0", 42))},
    ):
        with pytest.raises(SignatureError):
            sharing.verify_manifest("site-0", manifest.model_copy(update=changes))
    for name in ("samples", "samples_signature"):
        with pytest.raises(MalformedError):
            sharing.verify_manifest("site-0", manifest.model_copy(update={name: None}))


def test_hidden_counts_are_not_accepted(replay: Replay) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    with pytest.raises(MalformedError, match="hidden"):
        replay.sharing.verify_manifest(name, replay.manifests[name].model_copy(update={"samples": 5}))
