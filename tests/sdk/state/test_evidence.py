"""What others send wrong ends the session, not the institution, and is kept."""

import json

from fedddpm.transport.endpoints import SessionApi
from fedddpm_protocol.agreement.methods import Method


def test_a_share_that_does_not_open_is_kept_and_the_next_attempt_goes_on(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1, shares_s=3, masked_s=3)
    original, spoiled = SessionApi.share_inbox, []

    def share_inbox(api):
        inbox = original(api)
        if api._connection.member_id == "hospital-a" and not spoiled:
            spoiled.append(inbox.items[0].sender)
            first = inbox.items[0]
            bad = first.model_copy(update={"sealed": first.sealed[:-1] + bytes([first.sealed[-1] ^ 1])})
            return inbox.model_copy(update={"items": (bad, *inbox.items[1:])})
        return inbox

    monkeypatch.setattr(SessionApi, "share_inbox", share_inbox)
    summaries = fed.together()
    assert summaries["hospital-a"][0].attempt >= 1
    assert summaries["hospital-a"][0].took_part
    (line,) = (fed.folder / "state-hospital-a" / "evidence.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["blame"] == "aggregator"  # the dealer signed what it sent
    assert entry["code"] == "share"
    assert spoiled[0] in entry["refused"]
    assert len(entry["received"]["items"]) == 2
