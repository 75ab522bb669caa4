"""The session of the second implementation: an institution's six steps, and opening the sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.protocol.independent.framing import (
    agreed,
    derived,
    framed,
    hashed,
    labelled,
    mask_words,
    packed,
    public_key,
    secret_of,
    share_at,
    signed,
    u64,
    unframed,
    unpacked,
)

Sums = dict[str, list[int]]  # words by segment
KINDS = ("self_mask", "mask_sk")


@dataclass(frozen=True)
class Plan:
    """What is agreed before: ``segments`` are (name, bits, words) in the order of the specification."""

    spec_hash: bytes
    c_max: int
    segments: tuple[tuple[str, int, int], ...]
    chunk: int

    def threshold(self, members: int) -> int:
        return (members + self.c_max) // 2 + 1


@dataclass(frozen=True)
class Joined:
    """U1 as its sorted JOIN bodies tell it."""

    bodies: tuple[bytes, ...]

    @classmethod
    def of(cls, bodies: list[bytes]) -> Joined:
        return cls(tuple(sorted(bodies, key=lambda body: unframed(body)[1])))

    @property
    def sid(self) -> bytes:
        return hashed("session", *self.bodies)

    @property
    def ids(self) -> list[str]:
        return [unframed(body)[1].decode() for body in self.bodies]

    def field(self, member: str, place: int) -> bytes:
        """Of a JOIN: 3 is the channel key, 4 the mask key, 5 the commitment to the self mask."""
        return unframed(self.bodies[self.ids.index(member)])[place]


def share_commitment(sid: bytes, dealer: str, holder: str, kind: str, nonce: bytes, share: bytes) -> bytes:
    return hashed("share-commitment", sid, dealer.encode(), holder.encode(), kind.encode(), nonce, share)


def key_commitment(sid: bytes, dealer: str, holder: str, key: bytes) -> bytes:
    return hashed("channel-key", sid, dealer.encode(), holder.encode(), key)


def line_of(deal: bytes, holder: str) -> list[bytes]:
    """Of a DEAL's body: recipient, hash of the item, and commitments to the key, the self mask and the mask key."""
    lines = [unframed(line) for line in unframed(unframed(deal)[2])]
    return next(line for line in lines if line[0] == holder.encode())


def u2_hash(sid: bytes, deals: dict[str, bytes]) -> bytes:
    fields = [field for member in sorted(deals) for field in (member.encode(), hashed("deal", deals[member]))]
    return hashed("u2", sid, *fields)


def u3_hash(sid: bytes, hu2: bytes, digests: dict[str, bytes]) -> bytes:
    fields = [field for member in sorted(digests) for field in (member.encode(), digests[member])]
    return hashed("u3", sid, hu2, *fields)


def self_seed(secret: bytes, sid: bytes, member: str, hu2: bytes) -> bytes:
    return derived(secret, sid, "self", member.encode(), hu2)


def pair_seed(private: bytes, public: bytes, sid: bytes, one: str, other: str, hu2: bytes) -> bytes:
    low, high = sorted((one.encode(), other.encode()))
    return derived(agreed(private, public), sid, "mask", low, high, hu2)


class Institution:
    """A member; ``draw`` gives its randomness, in the order that docs/protocol.md names."""

    def __init__(self, member: str, identity: bytes, plan: Plan, draw: Callable[[int], bytes]) -> None:
        self.member, self.identity, self.plan, self.draw = member, identity, plan, draw
        self.held: dict[str, dict[str, tuple[bytes, bytes]]] = {}  # dealer -> kind -> share, nonce

    def join(self, seq: int, recorded: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
        self.channel, self.mask, self.own, nonce = (self.draw(32) for _ in range(4))
        body = framed(
            self.plan.spec_hash,
            self.member.encode(),
            u64(seq),
            public_key(self.channel),
            public_key(self.mask),
            hashed("bcommit", self.member.encode(), self.own),
            nonce,
            framed(*(member.encode() for member in recorded)),
        )
        return body, signed(self.identity, "join", body)

    def deal(self, joins: list[bytes]) -> tuple[bytes, bytes, dict[str, bytes]]:
        """The DEAL's body and signature, and the sealed items by recipient."""
        self.joined = Joined.of(joins)
        sid, ids = self.joined.sid, self.joined.ids
        more = self.plan.threshold(len(ids)) - 1
        secrets = {"self_mask": self.own, "mask_sk": self.mask}
        coefficients = {kind: [self.draw(32) for _ in range(more)] for kind in KINDS}
        lines, items = [], {}
        for point, holder in enumerate(ids, 1):
            nonces = {kind: self.draw(32) for kind in KINDS}
            shares = {kind: share_at(point, secrets[kind], coefficients[kind]) for kind in KINDS}
            both = [share_commitment(sid, self.member, holder, kind, nonces[kind], shares[kind]) for kind in KINDS]
            digest = committed_key = b""
            if holder == self.member:
                self.held[self.member] = {kind: (shares[kind], nonces[kind]) for kind in KINDS}
            else:
                key = self.channel_key(self.member, holder)
                plain = b"".join(shares[kind] for kind in KINDS) + b"".join(nonces[kind] for kind in KINDS)
                items[holder] = self.sealed(key, holder, plain)
                digest = hashlib.sha256(items[holder]).digest()
                committed_key = key_commitment(sid, self.member, holder, key)
            lines.append(framed(holder.encode(), digest, committed_key, *both))
        self.dealt = framed(sid, self.member.encode(), framed(*lines))
        return self.dealt, signed(self.identity, "deal", self.dealt), items

    def channel_key(self, dealer: str, holder: str) -> bytes:
        peer = holder if dealer == self.member else dealer
        shared = agreed(self.channel, self.joined.field(peer, 3))
        return derived(shared, self.joined.sid, "chan", dealer.encode(), holder.encode())

    def sealed(self, key: bytes, holder: str, plain: bytes) -> bytes:
        nonce = self.draw(12)
        names = (self.member.encode(), holder.encode())
        return nonce + AESGCM(key).encrypt(nonce, plain, labelled("shares", self.joined.sid, *names))

    def receive(self, deals: dict[str, bytes], items: dict[str, bytes]) -> tuple[bytes, bytes] | None:
        """Take what all others of U2 dealt; the accusation, if any of it is wrong."""
        sid, accused = self.joined.sid, []
        for dealer in sorted(items):
            line, key = line_of(deals[dealer], self.member), self.channel_key(dealer, self.member)
            pair = self._opened(items[dealer], dealer, key)
            right = key_commitment(sid, dealer, self.member, key) == line[2]
            for kind, committed in zip(KINDS, line[3:], strict=True):
                share, nonce = pair[kind] if pair else (b"", b"")
                right = right and share_commitment(sid, dealer, self.member, kind, nonce, share) == committed
            if right and pair is not None:
                self.held[dealer] = pair
            else:
                accused.append(framed(dealer.encode(), hashed("deal", deals[dealer]), key))
        self.deals, self.hu2 = deals, u2_hash(sid, deals)
        if not accused:
            return None
        body = framed(sid, self.member.encode(), framed(*accused))
        return body, signed(self.identity, "accusation", body)

    def _opened(self, item: bytes, dealer: str, key: bytes) -> dict[str, tuple[bytes, bytes]] | None:
        names = (dealer.encode(), self.member.encode())
        try:
            plain = AESGCM(key).decrypt(item[:12], item[12:], labelled("shares", self.joined.sid, *names))
        except InvalidTag:
            return None
        return {"self_mask": (plain[:32], plain[64:96]), "mask_sk": (plain[32:64], plain[96:])}

    def upload(self, words: Sums) -> dict[str, list[bytes]]:
        """The masked chunks of every segment."""
        sid, chunks = self.joined.sid, {}
        for segment, bits, count in self.plan.segments:
            total = list(words[segment])
            seeds = [(self_seed(self.own, sid, self.member, self.hu2), 1)]
            for peer in self.deals.keys() - {self.member}:
                seed = pair_seed(self.mask, self.joined.field(peer, 4), sid, self.member, peer, self.hu2)
                seeds.append((seed, 1 if self.member < peer else -1))
            for seed, sign in seeds:
                mask = mask_words(seed, segment, bits, count)
                total = [(word + sign * more) % 2**bits for word, more in zip(total, mask, strict=True)]
            size = self.plan.chunk
            chunks[segment] = [packed(total[start : start + size], bits) for start in range(0, count, size)]
        return chunks

    def confirm(self, digests: dict[str, bytes]) -> bytes:
        self.digests, self.hu3 = digests, u3_hash(self.joined.sid, self.hu2, digests)
        return signed(self.identity, "confirm", self.hu3)

    def unmask(self) -> tuple[bytes, bytes]:
        fields = [self.joined.sid, self.hu3]
        for dealer in sorted(self.deals):
            kind = "self_mask" if dealer in self.digests else "mask_sk"
            fields += [dealer.encode(), kind.encode(), *self.held[dealer][kind]]
        body = framed(*fields)
        return body, signed(self.identity, "unmask", body)


def segment_digest(plan: Plan, segment: str, chunks: list[bytes]) -> bytes:
    bits, count = next((bits, count) for name, bits, count in plan.segments if name == segment)
    sizes = (u64(bits), u64(count), u64(plan.chunk))
    return hashed("segment", segment.encode(), *sizes, *(hashlib.sha256(chunk).digest() for chunk in chunks))


def upload_digest(plan: Plan, member: str, chunks: dict[str, list[bytes]]) -> bytes:
    return hashed("y", member.encode(), *(segment_digest(plan, name, chunks[name]) for name in sorted(chunks)))


def open_sum(
    plan: Plan,
    joins: list[bytes],
    deals: dict[str, bytes],
    uploads: dict[str, dict[str, list[bytes]]],
    unmasks: dict[str, bytes],
) -> Sums:
    """The sum over all uploads, from the bodies of messages whose signatures were checked; ValueError if it is shut."""
    joined = Joined.of(joins)
    sid, hu2, needed = joined.sid, u2_hash(joined.sid, deals), plan.threshold(len(joined.ids))
    seeds: list[tuple[bytes, int]] = []
    for dealer in sorted(deals):
        kind, shares = ("self_mask" if dealer in uploads else "mask_sk"), {}
        for holder, body in unmasks.items():
            fields = unframed(body)[2:]
            place = fields[::4].index(dealer.encode())
            share, nonce = fields[4 * place + 2 : 4 * place + 4]
            committed = line_of(deals[dealer], holder)[3 + KINDS.index(kind)]
            if share_commitment(sid, dealer, holder, kind, nonce, share) == committed:
                shares[joined.ids.index(holder) + 1] = share
        if len(shares) < needed:
            raise ValueError(f"{len(shares)} right shares of {dealer}")
        secret = secret_of(dict(sorted(shares.items())[:needed]))
        if kind == "self_mask":
            if hashed("bcommit", dealer.encode(), secret) != joined.field(dealer, 5):
                raise ValueError(f"{dealer} dealt another self mask than it committed to")
            seeds.append((self_seed(secret, sid, dealer, hu2), 1))
            continue
        if public_key(secret) != joined.field(dealer, 4):
            raise ValueError(f"{dealer} dealt another mask key than that of its JOIN")
        for survivor in uploads:
            seed = pair_seed(secret, joined.field(survivor, 4), sid, dealer, survivor, hu2)
            seeds.append((seed, 1 if survivor < dealer else -1))
    return {name: _opened(plan, name, bits, count, uploads, seeds) for name, bits, count in plan.segments}


def _opened(
    plan: Plan,
    name: str,
    bits: int,
    count: int,
    uploads: dict[str, dict[str, list[bytes]]],
    seeds: list[tuple[bytes, int]],
) -> list[int]:
    total = [0] * count
    for chunks in uploads.values():
        words = []
        for index, chunk in enumerate(chunks[name]):
            words += unpacked(chunk, bits, min(plan.chunk, count - index * plan.chunk))
        total = [before + word for before, word in zip(total, words, strict=True)]
    for seed, sign in seeds:
        mask = mask_words(seed, name, bits, count)
        total = [before - sign * more for before, more in zip(total, mask, strict=True)]
    return [word % 2**bits for word in total]


def assigned(spec_hash: bytes, roster: list[str]) -> dict[str, list[str]]:
    """Who reports which part with USPLIT."""
    order = sorted(roster, key=lambda member: hashed("assign", spec_hash, member.encode()))
    parts: dict[str, list[str]] = {"encoder": [], "bottleneck": [], "decoder": []}
    for place in range(0, len(order), 2):
        heads = hashed("coin", spec_hash, u64(place // 2))[0] & 1
        if place + 1 == len(order):
            parts["bottleneck"].append(order[place])
            parts["encoder" if heads else "decoder"].append(order[place])
            continue
        parts["decoder"].append(order[place])
        parts["encoder"].append(order[place + 1])
        parts["bottleneck"].append(order[place + heads])
    return {part: sorted(members) for part, members in parts.items()}
