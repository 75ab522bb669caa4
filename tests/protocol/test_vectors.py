"""Every value of the known-answer file, byte for byte, through the real machines and rules.

A second implementation wrote the file (tests/protocol/independent), which knows nothing of the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.protocol.independent import write_vectors
from tests.protocol.support.sessions import inbox_of
from tests.support.repository import ROOT

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.methods import assign_parts
from fedddpm_protocol.agreement.roster import Member, Roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import AccusationError
from fedddpm_protocol.primitives import keys, ring
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session.cohort import SessionPlan
from fedddpm_protocol.session.commitments import deal_hash
from fedddpm_protocol.session.coordinator import form_cohort, recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Deal, ShareItem

VECTORS = json.loads((ROOT / "tests" / "vectors" / "sa2.json").read_text())
CASES = VECTORS["cases"]


SEGMENTS = tuple(SegmentSpec(name, bits, count, "integers") for name, bits, count in write_vectors.SEGMENTS)


def scripted(client: dict[str, Any]) -> Callable[[int], bytes]:
    """The client's randomness in the order in which the machine draws it."""
    queue = iter([bytes.fromhex(draw) for draw in client["draws"]])

    def draw(size: int) -> bytes:
        value = next(queue)
        assert len(value) == size
        return value

    return draw


class Replay:
    """One case, replayed step by step against its recorded values."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        identities = {c["id"]: SigningKey(bytes.fromhex(c["identity_sk"])) for c in case["clients"]}
        members = tuple(Member(name, identities[name].public_key) for name in sorted(identities))
        self.roster = Roster("vectors", 1, case["c_max"], case["n_min"], bytes(32), members)
        spec_hash = tagged_hash("spec", bytes.fromhex(case["spec"]))
        self.plan = SessionPlan(spec_hash, bytes(32), "vectors", SEGMENTS, 4, 16, False, self.roster.ids)
        self.clients = {c["id"]: c for c in case["clients"]}
        self.machines = {
            c["id"]: Participant(
                identity=identities[c["id"]],
                member_id=c["id"],
                roster=self.roster,
                plan=self.plan,
                floor=self.roster.n_min,
                recorded_u3=tuple(c["join_recorded_u3"]),
                random_bytes=scripted(c),
            )
            for c in case["clients"]
        }

    def private(self, name: str, place: int) -> bytes:
        """A session key of a client: 0 is the channel key, 1 the mask key, 2 the self mask."""
        return bytes.fromhex(self.clients[name]["draws"][place])

    def to_cohort(self) -> Any:
        self.joins = {name: machine.join(self.clients[name]["join_seq"]) for name, machine in self.machines.items()}
        self.cohort = form_cohort(self.plan, self.roster, list(self.joins.values()))
        return self.cohort

    def to_sharing(self) -> Any:
        self.to_cohort()
        self.shares = {name: self.machines[name].receive_cohort(self.cohort.joins) for name in self.case["u2"]}
        for name, shares in self.shares.items():
            self.cohort.verify_shares(name, shares)
        self.sharing = self.cohort.sharing(shares.deal for shares in self.shares.values())
        return self.sharing

    def to_uploads(self) -> None:
        self.to_sharing()
        self.uploads: dict[str, dict[str, list[bytes]]] = {}
        self.manifests = {}
        for name in self.case.get("u3", ()):
            machine = self.machines[name]
            machine.receive_shares(*inbox_of(name, self.shares.values()))
            self.uploads[name] = {}
            for segment in self.plan.segments:
                source = np.array(self.clients[name]["segments"][segment.name]["input"], np.uint64)
                spans = [chunk_span(segment, 4, index) for index in range(chunk_count(segment, 4))]
                self.uploads[name][segment.name] = [
                    machine.mask_chunk(
                        segment.name, index, source[start : start + count].astype(ring.word_dtype(segment.bits))
                    )
                    for index, (start, count) in enumerate(spans)
                ]
            self.manifests[name] = machine.finish_upload()

    def to_survivors(self) -> Any:
        self.to_uploads()
        digests = {name: self.sharing.verify_manifest(name, manifest) for name, manifest in self.manifests.items()}
        self.survivors = self.sharing.survivors(digests)
        self.confirmations = {
            name: self.machines[name].receive_survivors(self.survivors.message.survivors) for name in self.case["u3"]
        }
        return self.survivors

    def to_unmasks(self) -> None:
        self.to_survivors()
        confirmations = list(self.confirmations.values())
        self.unmasks = {
            name: self.machines[name].receive_confirmations(confirmations, SpentLog().commit)
            for name in self.case["u3"]
        }


SUMMED = [case for case in CASES if "u3" in case]


@pytest.fixture(params=SUMMED, ids=[case["name"] for case in SUMMED])
def replay(request: pytest.FixtureRequest) -> Replay:
    return Replay(request.param)


def test_spec_hash_and_threshold(replay: Replay) -> None:
    assert replay.plan.spec_hash.hex() == replay.case["spec_hash"]
    assert replay.roster.threshold(len(replay.case["u1"])) == replay.case["threshold"]


def test_joins_and_session_id(replay: Replay) -> None:
    cohort = replay.to_cohort()
    for name, join in replay.joins.items():
        assert replay.roster.public_key(name).hex() == replay.clients[name]["identity_pk"]
        assert join.body.hex() == replay.clients[name]["join_body"]
        assert join.signature.hex() == replay.clients[name]["join_signature"]
    assert list(cohort.ids) == replay.case["u1"]
    assert cohort.session_id.hex() == replay.case["session_id"]


@pytest.mark.parametrize("case", SUMMED, ids=lambda case: case["name"])
def test_deals_and_hu2(case: dict[str, Any]) -> None:
    replay = Replay(case)
    sharing, seen = replay.to_sharing(), 0
    for name, shares in replay.shares.items():
        client = replay.clients[name]
        assert shares.deal.body.hex() == client["deal_body"]
        assert shares.deal.signature.hex() == client["deal_signature"]
        assert deal_hash(shares.deal).hex() == client["deal_hash"]
        for item in shares.items:
            assert item.sealed.hex() == client["sealed"][item.recipient]
            seen += 1
    assert seen == len(case["u2"]) * (len(case["u1"]) - 1)
    assert list(sharing.ids) == case["u2"]
    assert sharing.hu2.hex() == case["hU2"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_accusations(case: dict[str, Any]) -> None:
    """What everybody says to the deals and items as they are recorded; a liar's are those of no machine."""
    replay, found = Replay(case), {}
    replay.to_cohort()
    dealers = [replay.clients[name] for name in case["u2"]]
    deals = [Deal(body=bytes.fromhex(d["deal_body"]), signature=bytes.fromhex(d["deal_signature"])) for d in dealers]
    for name in case["u2"]:
        if replay.machines[name].receive_cohort(replay.cohort.joins).deal not in deals:
            continue  # the liar itself
        items = [
            ShareItem(sender=d["id"], recipient=name, sealed=bytes.fromhex(d["sealed"][name]))
            for d in dealers
            if d["id"] != name
        ]
        try:
            replay.machines[name].receive_shares(items, deals)
        except AccusationError:
            accusation = replay.machines[name].accusation
            assert accusation is not None
            found[name] = {"body": accusation.body.hex(), "signature": accusation.signature.hex()}
    assert found == case["accusations"]


def test_mask_seeds(replay: Replay) -> None:
    sharing = replay.to_sharing()
    sid = replay.cohort.session_id
    for pair, seed in replay.case["pair_mask_seeds"].items():
        low, high = pair.split("|")
        public = keys.x25519_public(replay.private(high, 1))
        private = replay.private(low, 1)
        assert mask_seeds.pair_seed(private, public, sid, low, high, sharing.hu2).hex() == seed
        assert mask_seeds.pair_seed(private, public, sid, high, low, sharing.hu2).hex() == seed
    for name, seed in replay.case["self_mask_seeds"].items():
        assert mask_seeds.self_seed(replay.private(name, 2), sid, name, sharing.hu2).hex() == seed


def test_masked_words_and_digests(replay: Replay) -> None:
    replay.to_uploads()
    for name in replay.case["u3"]:
        for segment in replay.plan.segments:
            expected = replay.clients[name]["segments"][segment.name]
            assert [chunk.hex() for chunk in replay.uploads[name][segment.name]] == expected["masked"]
            digest = segment_digest(segment, 4, replay.manifests[name].chunks[segment.name])
            assert digest.hex() == expected["digest"]
        digest = replay.sharing.verify_manifest(name, replay.manifests[name])
        assert digest.hex() == replay.clients[name]["upload_digest"]


def test_confirmations_and_hu3(replay: Replay) -> None:
    survivors = replay.to_survivors()
    assert list(survivors.ids) == replay.case["u3"]
    assert survivors.hu3.hex() == replay.case["hU3"]
    assert {n: c.signature.hex() for n, c in replay.confirmations.items()} == replay.case["confirmations"]


def test_unmask_messages(replay: Replay) -> None:
    replay.to_unmasks()
    for name, message in replay.unmasks.items():
        expected = replay.case["unmask"][name]
        assert message.body.hex() == expected["body"]
        assert message.signature.hex() == expected["signature"]


def test_opened_sums(replay: Replay) -> None:
    replay.to_unmasks()
    plan = recover(replay.survivors, list(replay.unmasks.values()))
    for segment in replay.plan.segments:
        pieces = [
            plan.open_chunk(segment, index, [replay.uploads[name][segment.name][index] for name in replay.case["u3"]])
            for index in range(chunk_count(segment, 4))
        ]
        assert [int(word) for word in np.concatenate(pieces)] == replay.case["opened"][segment.name]


@pytest.mark.parametrize("draw", VECTORS["usplit"], ids=lambda draw: f"{len(draw['roster'])} members")
def test_usplit_assignment(draw: dict[str, Any]) -> None:
    assigned = assign_parts(bytes.fromhex(draw["spec_hash"]), draw["roster"])
    assert {part: list(ids) for part, ids in assigned.items()} == draw["assignment"]
    reordered = assign_parts(bytes.fromhex(draw["spec_hash"]), reversed(draw["roster"]))
    assert reordered == assigned


def test_the_file_is_what_the_second_implementation_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_vectors, "FILE", tmp_path / "sa2.json")
    write_vectors.main()
    assert json.loads((tmp_path / "sa2.json").read_text()) == VECTORS


def test_the_file_is_covered() -> None:
    """No field of the known answers is left without a comparison above."""
    compared = {
        *("name", "spec", "spec_hash", "c_max", "n_min", "threshold", "clients", "u1", "session_id", "u2", "hU2"),
        *("accusations", "pair_mask_seeds", "self_mask_seeds", "u3", "hU3", "confirmations", "unmask", "opened"),
    }
    of_clients = {
        *("id", "identity_sk", "identity_pk", "draws", "join_seq", "join_recorded_u3", "join_body", "join_signature"),
        *("deal_body", "deal_signature", "deal_hash", "sealed", "segments", "upload_digest"),
    }
    for case in CASES:
        assert set(case) <= compared
        assert all(set(client) <= of_clients for client in case["clients"])
