"""The membership of a federation, signed offline by its root key.

The roster is the only source of identities, thresholds and the aggregator's own key. Every institution pins the root
key, keeps the highest version it has seen and refuses a lower one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb

from fedddpm_protocol.agreement.model_layout import HASH_BYTES, require_name
from fedddpm_protocol.errors import MalformedError, OlderRosterError, RosterError, UnknownMemberError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.canonical import added_later, tagged_hash
from fedddpm_protocol.wire.messages import MAX_COHORT, MAX_MEMBERS, SignedDocument

MAX_OPERATORS = 32
MAX_REDRAWS = 16  # each shows the sums of other groups
MAX_VERSION = 2**31 - 1
SHARD_RISK_BITS = 40  # a draw gives some shard more conspirators than c_max with a chance of at most 2^-40


@dataclass(frozen=True)
class Member:
    """One enrolled institution, or an operator."""

    id: str
    public_key: bytes  # Ed25519

    def __post_init__(self) -> None:
        require_name("member id", self.id)
        if len(self.public_key) != keys.KEY_BYTES:
            raise ValueError(f"the public key of {self.id} has {len(self.public_key)} bytes instead of 32")


@dataclass(frozen=True)
class Auditor:
    """Who may be shown single updates, each by its member's consent: where a sum broke the rules, whose it was."""

    id: str
    sealing_key: bytes  # X25519

    def __post_init__(self) -> None:
        require_name("auditor id", self.id)
        try:
            keys.require_session_key(self.sealing_key)
        except MalformedError as error:
            raise ValueError(f"the sealing key of {self.id}: {error}") from error


@dataclass(frozen=True)
class Release:
    """The root's permission to sum the same base model and part once more, over other survivors."""

    base_model_hash: bytes
    part: str
    old_u3: tuple[str, ...]
    new_u3: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.base_model_hash) != HASH_BYTES:
            raise ValueError("the base model hash of a release must have 32 bytes")
        for ids in (self.old_u3, self.new_u3):
            if list(ids) != sorted(set(ids)) or not ids:
                raise ValueError("the survivors of a release must be sorted, distinct and not empty")


@dataclass(frozen=True)
class Sharding:
    """How more members than one sum holds are spread over shards, each with a sum of its own.

    ``seed`` decides who is in which shard (see :mod:`fedddpm_protocol.agreement.shards`). It comes from the root after
    the members are known, and a new roster version has a new one: neither the aggregator nor members can choose the
    draw.
    """

    size: int  # most members of a shard
    corrupt: int  # how many of all members may conspire with the aggregator
    seed: bytes
    source: str  # where the seed comes from, for people: the root's own randomness, or a public beacon's round
    redraws: int = added_later(0)  # how often a spoiled sum may change who is in which shard

    def __post_init__(self) -> None:
        if not 3 <= self.size <= MAX_COHORT:
            raise ValueError(f"shards of {self.size} members are outside 3 to {MAX_COHORT}")
        if len(self.seed) != HASH_BYTES:
            raise ValueError("the seed of the draw must have 32 bytes")
        if not 0 < len(self.source) <= 200:
            raise ValueError("the source of the draw's seed must be named in 1 to 200 characters")
        if not 0 <= self.redraws <= MAX_REDRAWS:
            raise ValueError(f"{self.redraws} further draws are outside 0 to {MAX_REDRAWS}")

    def sizes(self, members: int) -> tuple[int, ...]:
        """Members of each shard: as few shards as can be, as equal as can be."""
        count = -(-members // self.size)
        return tuple(members // count + (shard < members % count) for shard in range(count))

    def needed_c_max(self, members: int) -> int:
        """The smallest c_max of a shard that none of the draws exceeds anywhere, up to a chance of 2^-40."""
        shards = len(self.sizes(members)) * (1 + self.redraws)
        return _needed_c_max(members, self.corrupt, max(self.sizes(members)), shards)


@lru_cache(maxsize=64)
def _needed_c_max(members: int, corrupt: int, largest: int, shards: int) -> int:
    """The hypergeometric tail over all shards of all draws, exactly: corrupt ones among the members of the largest."""
    draws = comb(members, largest)
    bad = 0  # draws of a shard with more than c corrupt members
    for c in range(min(corrupt, largest), 0, -1):
        bad += comb(corrupt, c) * comb(members - corrupt, largest - c)
        if shards * bad << SHARD_RISK_BITS > draws:
            return c
    return 0


@dataclass(frozen=True)
class Roster:
    """Members and the rules that no aggregator can bend. With shards, c_max and n_min hold for each of them."""

    federation: str
    version: int  # grows by one with every signature of the root
    c_max: int  # how many institutions may conspire with the aggregator
    n_min: int  # smallest set whose sum may be opened
    server_public_key: bytes  # Ed25519: signs specs and results
    members: tuple[Member, ...]
    releases: tuple[Release, ...] = ()
    operators: tuple[Member, ...] = added_later(())  # who may start, pause and end runs from afar
    sharding: tuple[Sharding, ...] = added_later(())  # one, or none: all members stand in one sum
    auditors: tuple[Auditor, ...] = added_later(())  # one, or none

    def __post_init__(self) -> None:
        require_name("federation", self.federation)
        if len(self.server_public_key) != keys.KEY_BYTES:
            raise ValueError("the aggregator's public key must have 32 bytes")
        ids = [member.id for member in self.members]
        if ids != sorted(ids, key=str.encode):
            raise ValueError("members must be sorted by id")
        if len(set(ids)) != len(ids) or len({member.public_key for member in self.members}) != len(ids):
            raise ValueError("two members share an id or a key")
        if self.server_public_key in {member.public_key for member in self.members}:
            raise ValueError("the aggregator must not hold the identity of a member")
        self._check_operators()
        self._check_sharding()
        self._check_auditor()
        if not 1 <= self.version <= MAX_VERSION:
            raise ValueError(f"roster versions go from 1 to {MAX_VERSION}")
        if self.n_min < max(3, self.c_max + 2) and not (self.n_min == 2 and self.c_max == 0):
            raise ValueError(f"n_min {self.n_min} is below max(3, c_max + 2) = {max(3, self.c_max + 2)}")

    def _check_operators(self) -> None:
        ids = [operator.id for operator in self.operators]
        if ids != sorted(set(ids), key=str.encode) or len(ids) > MAX_OPERATORS:
            raise ValueError(f"operators must be sorted by id, distinct, and at most {MAX_OPERATORS}")
        keys_of_others = {member.public_key for member in self.members} | {self.server_public_key}
        own = {operator.public_key for operator in self.operators}
        if own & keys_of_others or set(ids) & set(self.ids) or len(own) != len(ids):
            raise ValueError("an operator needs an id and a key of its own, not those of a member or the aggregator")

    def _check_auditor(self) -> None:
        if len(self.auditors) > 1:
            raise ValueError("a roster has one auditor at most")
        taken = {one.public_key for one in (*self.members, *self.operators)} | {self.server_public_key}
        if any(one.sealing_key in taken for one in self.auditors):
            raise ValueError("an auditor needs a key of its own, made by: fedddpm-aggregator auditor keygen")

    def _check_sharding(self) -> None:
        count = len(self.members)
        if count > MAX_MEMBERS:
            raise ValueError(f"{count} members are more than {MAX_MEMBERS}")
        if not self.sharding:
            if count > MAX_COHORT:
                raise ValueError(f"{count} members are more than one sum holds ({MAX_COHORT}); they need shards")
            return
        if len(self.sharding) > 1:
            raise ValueError("a roster has one way of sharding")
        rules = self.sharding[0]
        if rules.corrupt > count:
            raise ValueError(f"{rules.corrupt} conspirators are more than the {count} members")
        needed = rules.needed_c_max(count)
        if self.c_max < needed:
            raise ValueError(
                f"shards drawn from {count} members of whom {rules.corrupt} may conspire need a c_max of {needed}, "
                f"not {self.c_max}"
            )

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that every round spec names."""
        return tagged_hash("roster", canonical.encode(self))

    def __hash__(self) -> int:
        """As a key of caches: without looking at every member again."""
        return hash(self.hash)

    @cached_property
    def _keys(self) -> Mapping[str, bytes]:
        return {member.id: member.public_key for member in self.members}

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Member ids, sorted bytewise."""
        return tuple(member.id for member in self.members)

    def threshold(self, cohort_size: int) -> int:
        """``t = floor((n + c_max) / 2) + 1``: shares needed to open anything."""
        return (cohort_size + self.c_max) // 2 + 1

    def quorum(self, cohort_size: int) -> int:
        """``max(t, n_min)``: the smallest set of sharers and of survivors."""
        return max(self.threshold(cohort_size), self.n_min)

    def public_key(self, member_id: str) -> bytes:
        """The Ed25519 key of a member; UnknownMemberError if it is not enrolled."""
        key = self._keys.get(member_id)
        if key is None:
            raise UnknownMemberError(f"{member_id!r} is not in roster version {self.version}", member_id)
        return key

    def operator_key(self, operator_id: str) -> bytes:
        """The Ed25519 key of an operator; UnknownMemberError if the root named none of this id."""
        for operator in self.operators:
            if operator.id == operator_id:
                return operator.public_key
        raise UnknownMemberError(f"{operator_id!r} is no operator in roster version {self.version}", operator_id)

    @property
    def auditor(self) -> Auditor | None:
        """Who may be shown single updates by consent."""
        return self.auditors[0] if self.auditors else None

    def releases_pair(self, base: bytes, part: str, old_u3: tuple[str, ...], new_u3: tuple[str, ...]) -> bool:
        """Whether the root released exactly this step from old to new survivors."""
        return Release(base, part, old_u3, new_u3) in self.releases

    def tightens_against(self, newer: Roster, cohort: tuple[str, ...]) -> bool:
        """Whether ``newer`` removes or rekeys a member of ``cohort`` or raises c_max: then a running session ends."""
        held = {member.id: member.public_key for member in newer.members}
        return newer.c_max > self.c_max or any(held.get(member) != self.public_key(member) for member in cohort)


def sign_roster(roster: Roster, root: keys.SigningKey) -> SignedDocument:
    """Sign a roster with the federation's root key, away from any server."""
    body = canonical.encode(roster)
    return SignedDocument(body=body, signature=root.sign("roster", body))


def open_roster(document: SignedDocument, root_public_key: bytes, newest_seen: int = 0) -> Roster:
    """The roster under a root signature.

    Raises SignatureError (another root key), RosterError (not a valid roster) or OlderRosterError (below
    ``newest_seen``, the highest version this institution has accepted).
    """
    keys.verify(root_public_key, "roster", document.body, document.signature)
    try:
        roster = canonical.decode(Roster, document.body)
    except MalformedError as error:
        raise RosterError(f"the signed roster is not valid: {error}") from error
    if roster.version < newest_seen:
        raise OlderRosterError(f"roster version {roster.version} is older than version {newest_seen}, already seen")
    return roster
