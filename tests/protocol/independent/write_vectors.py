"""Write tests/vectors/sa2.json by the second implementation: ``python tests/protocol/independent/write_vectors.py``.

The package is not asked for a single byte. All that a real session would draw is SHA-256 of a name and a number.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
if __name__ == "__main__":
    _TESTS = types.ModuleType("tests")  # another distribution may have installed a package of this name
    _TESTS.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = _TESTS

from tests.protocol.independent.framing import hashed, public_identity  # noqa: E402
from tests.protocol.independent.session import (  # noqa: E402
    Institution,
    Joined,
    Plan,
    assigned,
    open_sum,
    pair_seed,
    segment_digest,
    self_seed,
    u2_hash,
    u3_hash,
    upload_digest,
)

FILE = ROOT / "tests" / "vectors" / "sa2.json"
NOTE = (
    "Byte strings in hex; ids and segment names are UTF-8. Segments: ring bits as given, 4 coordinates a chunk (two "
    "chunks for 6 coordinates). Ring arithmetic only: how values become ring words is not part of these cases. `draws` "
    "are a client's random bytes in the order of docs/protocol.md. Written by tests/protocol/independent."
)
SEGMENTS = (("partition", 16, 6), ("weights", 32, 2))
CASES: tuple[dict[str, Any], ...] = (
    {"name": "three clients, nobody drops", "c_max": 0, "u1": "abc", "u2": "abc", "u3": "abc"},
    {
        "name": "five clients, one drops before its shares (U2 differs from U1), one before its upload",
        "c_max": 0,
        "u1": "abcde",
        "u2": "acde",
        "u3": "ace",
    },
    {"name": "four clients, one may conspire, one drops", "c_max": 1, "u1": "abcd", "u2": "abcd", "u3": "abd"},
    {"name": "four clients, one deals a wrong share", "c_max": 1, "u1": "abcd", "u2": "abcd", "u3": "", "liar": "c"},
)


class Draws:
    """Bytes that follow from a name, and the list of what was drawn."""

    def __init__(self, name: str) -> None:
        self._name, self.given = name, list[bytes]()

    def __call__(self, size: int) -> bytes:
        self.given.append(hashlib.sha256(f"{self._name}/{len(self.given)}".encode()).digest()[:size])
        return self.given[-1]


def main() -> None:
    """Write the file."""
    content = {
        "protocol": "fedddpm/sa/2",
        "note": NOTE,
        "cases": [written(**case) for case in CASES],
        "usplit": [draw_of(number) for number in (6, 7, 10)],
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def written(name: str, c_max: int, u1: str, u2: str, u3: str, liar: str = "") -> dict[str, Any]:
    """One case: every message of a session, and what came out."""
    ids = [f"site-{letter}" for letter in u1]
    spec = f"known answers: {name}".encode()
    plan = Plan(hashed("spec", spec), c_max, SEGMENTS, 4)
    draws = {member: Draws(f"{name}/{member}") for member in ids}
    clients: dict[str, dict[str, Any]] = {}
    members: dict[str, Institution] = {}
    for member in ids:
        identity = hashlib.sha256(f"{name}/{member}/identity".encode()).digest()
        members[member] = Institution(member, identity, plan, draws[member])
        body, signature = members[member].join(1)
        clients[member] = {"id": member, "identity_sk": identity.hex(), "identity_pk": public_identity(identity).hex()}
        clients[member] |= {"join_seq": 1, "join_recorded_u3": [], "join_body": body.hex()}
        clients[member]["join_signature"] = signature.hex()
    joins = [bytes.fromhex(client["join_body"]) for client in clients.values()]
    case: dict[str, Any] = {"name": name, "spec": spec.hex(), "spec_hash": plan.spec_hash.hex(), "c_max": c_max}
    case |= {"n_min": 3, "threshold": plan.threshold(len(ids)), "u1": ids, "session_id": Joined.of(joins).sid.hex()}
    if liar:
        spoil(members[f"site-{liar}"])
    deals, items = share_out(members, [f"site-{letter}" for letter in u2], joins, clients)
    case |= {"u2": sorted(deals), "hU2": u2_hash(Joined.of(joins).sid, deals).hex()}
    accusations = {}
    for member in sorted(deals):
        inbox = {dealer: sealed[member] for dealer, sealed in items.items() if dealer != member}
        accusation = members[member].receive(deals, inbox)
        if accusation is not None:
            accusations[member] = {"body": accusation[0].hex(), "signature": accusation[1].hex()}
    case["accusations"] = accusations
    if u3:
        case |= summed(plan, members, joins, deals, [f"site-{letter}" for letter in u3], clients)
    for member, client in clients.items():
        client["draws"] = [draw.hex() for draw in draws[member].given]
    return {**case, "clients": list(clients.values())}


def spoil(liar: Institution) -> None:
    """Let a member seal other shares to the first one than it commits to."""
    honest: Callable[[bytes, str, bytes], bytes] = liar.sealed

    def sealed(key: bytes, holder: str, plain: bytes) -> bytes:
        return honest(key, holder, bytes([plain[0] ^ 1]) + plain[1:] if holder == "site-a" else plain)

    liar.sealed = sealed  # type: ignore[method-assign]


def share_out(
    members: dict[str, Institution], senders: list[str], joins: list[bytes], clients: dict[str, dict[str, Any]]
) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """Everybody's deal, and the sealed items by dealer and recipient."""
    deals, items = {}, {}
    for member in senders:
        body, signature, items[member] = members[member].deal(joins)
        deals[member] = body
        clients[member] |= {"deal_body": body.hex(), "deal_signature": signature.hex()}
        clients[member] |= {"deal_hash": hashed("deal", body).hex()}
        clients[member]["sealed"] = {recipient: sealed.hex() for recipient, sealed in items[member].items()}
    return deals, items


def summed(
    plan: Plan,
    members: dict[str, Institution],
    joins: list[bytes],
    deals: dict[str, bytes],
    survivors: list[str],
    clients: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """From the masks to the opened sum."""
    joined, sid, hu2 = Joined.of(joins), Joined.of(joins).sid, u2_hash(Joined.of(joins).sid, deals)
    uploads, digests = {}, {}
    for place, member in enumerate(sorted(deals)):
        words = {"partition": [7 + place + 3 * k for k in range(6)], "weights": [100 + place, 1_000_000 + place]}
        clients[member]["segments"] = {name: {"bits": bits, "input": words[name]} for name, bits, _ in plan.segments}
        if member in survivors:
            uploads[member] = members[member].upload(words)
            digests[member] = upload_digest(plan, member, uploads[member])
            clients[member]["upload_digest"] = digests[member].hex()
            for name, chunks in uploads[member].items():
                masked = {"masked": [chunk.hex() for chunk in chunks]}
                masked["digest"] = segment_digest(plan, name, chunks).hex()
                clients[member]["segments"][name] |= masked
    case: dict[str, Any] = {"u3": survivors, "hU3": u3_hash(sid, hu2, digests).hex()}
    pairs = [(one, other) for one in sorted(deals) for other in sorted(deals) if one < other]
    case["pair_mask_seeds"] = {
        f"{low}|{high}": pair_seed(members[low].mask, joined.field(high, 4), sid, low, high, hu2).hex()
        for low, high in pairs
    }
    case["self_mask_seeds"] = {m: self_seed(members[m].own, sid, m, hu2).hex() for m in sorted(deals)}
    case["confirmations"] = {member: members[member].confirm(digests).hex() for member in survivors}
    unmasks = {member: members[member].unmask() for member in survivors}
    case["unmask"] = {member: {"body": b.hex(), "signature": s.hex()} for member, (b, s) in unmasks.items()}
    case["opened"] = open_sum(plan, joins, deals, uploads, {member: body for member, (body, _) in unmasks.items()})
    return case


def draw_of(number: int) -> dict[str, Any]:
    """A draw of USPLIT over so many members."""
    roster, spec_hash = [f"site-{index:02}" for index in range(number)], hashed("spec", f"usplit {number}".encode())
    return {"spec_hash": spec_hash.hex(), "roster": roster, "assignment": assigned(spec_hash, roster)}


if __name__ == "__main__":
    main()
