"""Wire messages: closed to unknown fields, bounded in size, one base64 form."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from fedddpm_protocol.wire import api
from fedddpm_protocol.wire.messages import (
    MAX_CHUNKS,
    MAX_COHORT,
    MAX_SEGMENTS,
    Accusation,
    Confirmation,
    Confirmations,
    Deal,
    Join,
    Message,
    ShareItem,
    Shares,
    SignedDocument,
    Survivor,
    Survivors,
    Unmask,
    UploadManifest,
)


def b64(size: int) -> str:
    return base64.b64encode(bytes(range(7, 7 + size % 200)) + bytes(size - size % 200)).decode()


ITEM = {"sender": "site-0", "recipient": "site-1", "sealed": b64(156)}
DEAL = {"body": b64(50), "signature": b64(64)}
SURVIVOR = {"id": "site-0", "upload_digest": b64(32)}
CONFIRMATION = {"id": "site-0", "signature": b64(64)}
GOOD: list[tuple[type[Message], dict[str, Any]]] = [
    (SignedDocument, {"body": b64(50), "signature": b64(64)}),
    (Join, {"body": b64(50), "signature": b64(64)}),
    (ShareItem, ITEM),
    (Deal, DEAL),
    (Shares, {"items": [ITEM], "deal": DEAL}),
    (Accusation, {"id": "site-0", "body": b64(50), "signature": b64(64)}),
    (UploadManifest, {"chunks": {"full": [b64(32)]}, "samples": 3, "samples_signature": b64(64)}),
    (Survivor, SURVIVOR),
    (Survivors, {"survivors": [SURVIVOR]}),
    (Confirmation, CONFIRMATION),
    (Confirmations, {"confirmations": [CONFIRMATION]}),
    (Unmask, {"id": "site-0", "body": b64(50), "signature": b64(64)}),
    (api.CohortReply, {"joins": [{"body": b64(50), "signature": b64(64)}]}),
    (api.ShareInbox, {"items": [ITEM], "deals": [DEAL], "sharers": ["site-0"]}),
    (api.JoinReceipt, {"outcome": "accepted", "newest_seq": 4}),
    (api.UploadStatus, {"chunks": {"full": {"0": "ab" * 32}}, "complete": False}),
    (api.ResultsPage, {"results": [{"body": b64(50), "signature": b64(64)}]}),
]
CASES = pytest.mark.parametrize(("kind", "fields"), GOOD, ids=[kind.__name__ for kind, _ in GOOD])


def parse(kind: type[Message], fields: dict[str, Any]) -> Message:
    return kind.model_validate_json(json.dumps(fields))


@CASES
def test_messages_round_trip(kind: type[Message], fields: dict[str, Any]) -> None:
    message = parse(kind, fields)
    assert json.loads(message.model_dump_json()) == fields
    assert kind.model_validate_json(message.model_dump_json()) == message


@CASES
def test_unknown_fields_are_refused_except_in_replies(kind: type[Message], fields: dict[str, Any]) -> None:
    """A later aggregator may tell more; what is signed or sent to it stays closed."""
    if issubclass(kind, api.Reply):
        assert parse(kind, {**fields, "extra": 1}) == parse(kind, fields)
        return
    with pytest.raises(ValidationError, match="extra"):
        parse(kind, {**fields, "extra": 1})


@CASES
def test_missing_and_empty_fields_are_refused(kind: type[Message], fields: dict[str, Any]) -> None:
    for name in set(fields) - {"samples", "samples_signature"}:
        with pytest.raises(ValidationError):
            parse(kind, {key: value for key, value in fields.items() if key != name})
        with pytest.raises(ValidationError):
            parse(kind, {**fields, name: None})


@CASES
def test_messages_cannot_be_changed(kind: type[Message], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(parse(kind, fields), next(iter(fields)), None)


BYTES_FIELDS = [
    (kind, fields, name)
    for kind, fields in GOOD
    for name, value in fields.items()
    if isinstance(value, str) and name not in ("id", "sender", "recipient", "outcome")
]


@pytest.mark.parametrize(
    ("kind", "fields", "name"), BYTES_FIELDS, ids=[f"{k.__name__}.{n}" for k, _, n in BYTES_FIELDS]
)
def test_bytes_have_one_length_and_one_form(kind: type[Message], fields: dict[str, Any], name: str) -> None:
    raw = base64.b64decode(fields[name])
    if name != "body":
        for size in (len(raw) - 1, len(raw) + 1, 0):
            with pytest.raises(ValidationError):
                parse(kind, {**fields, name: b64(size)})
    text = fields[name]
    urlsafe = base64.urlsafe_b64encode(b"\xff" * len(raw)).decode()
    wrong = [text.rstrip("=") + "!", f" {text}", f"{text}\n", text + "====", urlsafe, "ä" * len(text), 5, [1]]
    if text.endswith("="):
        wrong += [text.rstrip("="), text[:-2] + chr(ord(text[-2]) ^ 1) + "=" if not text.endswith("==") else text + "="]
    for value in wrong:
        with pytest.raises(ValidationError):
            parse(kind, {**fields, name: value})


def test_base64_with_other_unused_bits_is_refused() -> None:
    """QQ== and QR== decode to the same byte; only the first is what an encoder writes."""
    good = base64.b64encode(bytes(64)).decode()
    assert good.endswith("A==")
    parse(Confirmation, {"id": "a", "signature": good})
    with pytest.raises(ValidationError, match="canonical"):
        parse(Confirmation, {"id": "a", "signature": good[:-3] + "B=="})


@pytest.mark.parametrize("member", ["", "a" * 65, "../x", "a b", "a\n", "ä", "-a", ".a", "a/b", "a\0"])
def test_member_ids_are_safe_names(member: str) -> None:
    with pytest.raises(ValidationError):
        parse(Confirmation, {**CONFIRMATION, "id": member})
    with pytest.raises(ValidationError):
        parse(ShareItem, {**ITEM, "recipient": member})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Shares, {"items": [ITEM] * (MAX_COHORT + 1), "deal": DEAL}),
        (Survivors, {"survivors": [SURVIVOR] * (MAX_COHORT + 1)}),
        (Survivors, {"survivors": []}),
        (Confirmations, {"confirmations": [CONFIRMATION] * (MAX_COHORT + 1)}),
        (Join, {"body": b64(2**20 + 1), "signature": b64(64)}),
        (Unmask, {"id": "a", "body": b64(2**20 + 1), "signature": b64(64)}),
        (SignedDocument, {"body": "", "signature": b64(64)}),
        (UploadManifest, {"chunks": {"full": [b64(32)] * (MAX_CHUNKS + 1)}}),
        (UploadManifest, {"chunks": {f"s{i}": [b64(32)] for i in range(MAX_SEGMENTS + 1)}}),
        (UploadManifest, {"chunks": {"": [b64(32)]}}),
        (UploadManifest, {"chunks": {"s" * 129: [b64(32)]}}),
        (UploadManifest, {"chunks": {}, "samples": 0}),
        (UploadManifest, {"chunks": {}, "samples": 2**40 + 1}),
        (UploadManifest, {"chunks": {}, "samples": -1}),
        (UploadManifest, {"chunks": {}, "samples": 1.5}),
        (api.CohortReply, {"joins": [{"body": b64(50), "signature": b64(64)}] * 129}),
        (api.UploadStatus, {"chunks": {"full": {"0": "AB" * 32}}, "complete": False}),
    ],
)
def test_sizes_and_numbers_are_bounded(kind: type[Message], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(kind, fields)
