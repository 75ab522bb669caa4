"""The membership of a federation, signed offline by its root key.

The roster is the only source of identities, thresholds and the aggregator's own key. Every institution pins the root
key, keeps the highest version it has seen and refuses a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedddpm_protocol import canonical, keys
from fedddpm_protocol.canonical import tagged_hash
from fedddpm_protocol.errors import MalformedError, OlderRosterError, RosterError, UnknownMemberError
from fedddpm_protocol.messages import SignedDocument
from fedddpm_protocol.spec import HASH_BYTES, require_name

MAX_MEMBERS = 128


@dataclass(frozen=True)
class Member:
    """One enrolled institution."""

    id: str
    public_key: bytes  # Ed25519

    def __post_init__(self) -> None:
        require_name("member id", self.id)
        if len(self.public_key) != keys.KEY_BYTES:
            raise ValueError(f"the public key of {self.id} has {len(self.public_key)} bytes instead of 32")


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
class Roster:
    """Members and the rules that no aggregator can bend."""

    federation: str
    version: int  # grows by one with every signature of the root
    c_max: int  # how many institutions may conspire with the aggregator
    n_min: int  # smallest set whose sum may be opened
    server_public_key: bytes  # Ed25519: signs specs and results
    members: tuple[Member, ...]
    releases: tuple[Release, ...] = ()

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
        if len(ids) > MAX_MEMBERS:
            raise ValueError(f"{len(ids)} members are more than {MAX_MEMBERS}")
        if self.version < 1:
            raise ValueError("roster versions start at 1")
        if self.n_min < max(3, self.c_max + 2) and not (self.n_min == 2 and self.c_max == 0):
            raise ValueError(f"n_min {self.n_min} is below max(3, c_max + 2) = {max(3, self.c_max + 2)}")

    @property
    def hash(self) -> bytes:
        """32 bytes that every round spec names."""
        return tagged_hash("roster", canonical.encode(self))

    @property
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
        for member in self.members:
            if member.id == member_id:
                return member.public_key
        raise UnknownMemberError(f"{member_id!r} is not in roster version {self.version}", member_id)

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
