"""Example messages for the OpenAPI document: the right shape, made-up content."""

from __future__ import annotations

import base64


def _bytes(count: int) -> str:
    return base64.b64encode(bytes(index % 256 for index in range(count))).decode()


JOIN = {"body": _bytes(300), "signature": _bytes(64)}
SHARES = {
    "items": [{"sender": "hospital-a", "recipient": "hospital-b", "sealed": _bytes(156)}],
    "deal": {"body": _bytes(500), "signature": _bytes(64)},
}
ACCUSATION = {"id": "hospital-a", "body": _bytes(200), "signature": _bytes(64)}
UPLOAD = {"chunks": {"decoder": [_bytes(32), _bytes(32)], "decoder.weights": [_bytes(32)]}}
CONFIRMATION = {"id": "hospital-a", "signature": _bytes(64)}
UNMASK = {"id": "hospital-a", "body": _bytes(400), "signature": _bytes(64)}
START_RUN = {
    "charter": {"body": _bytes(500), "signature": _bytes(64)},
    "durations": {"join_s": 7200.0},
    "initial_model": "ab" * 32,
}
ROSTER = {"body": _bytes(400), "signature": _bytes(64)}
