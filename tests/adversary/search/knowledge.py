"""What a party can compute from what it saw, by the production's own Shamir, key exchange and key derivation.

A mask is unknown as long as its seed is not derived, byte by byte; a sum is known where all unknown masks cancel. So
a weaker derivation of seeds, or a secret that is used twice, is seen here without anybody having thought of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tests.adversary.search import algebra, messages
from tests.adversary.search.algebra import Row, spans
from tests.adversary.search.honest import Federation, Node
from tests.support.elimination import PRIME

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import keys, shamir
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session.cohort import Cohort
from fedddpm_protocol.session.spent import MOST_ANSWERS
from fedddpm_protocol.wire.messages import JoinBody, MaskKind, Shares, Unmask

Column = tuple[int, str, int, int]  # base, part, member, which training
Basis = list[list[int]]
KINDS: tuple[MaskKind, ...] = ("self_mask", "mask_sk")


def history(nodes: Iterable[Node]) -> list[Node]:
    """The nodes and all that led to them, each once."""
    seen: dict[int, Node] = {}
    for node in nodes:
        here: Node | None = node
        while here is not None and id(here) not in seen:
            seen[id(here)] = here
            here = here.parent
    return list(seen.values())


@dataclass
class Party:
    """Somebody who computes: the aggregator with its accomplices, or one curious member with a transcript.

    ``insiders``: honest members whose machine's memory it reads. ``accomplices``: whether it has the secrets behind the
    JOINs that the adversary made. What was derived once is kept, for the same code.
    """

    federation: Federation
    insiders: frozenset[int] = frozenset()
    accomplices: bool = True
    _secrets: dict[tuple[bytes, str, str, frozenset[int]], bytes | None] = field(default_factory=dict)
    _seeds: dict[tuple[bytes, ...], frozenset[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hands = messages.Accomplices(self.federation)

    # --- secrets and seeds --------------------------------------------------------------------------------------------

    def seeds(self, nodes: Sequence[Node]) -> set[bytes]:
        """Seeds of all masks that it can derive; ``nodes`` with their history."""
        cohorts = {c.session_id: c for c in (messages.cohort_of(n) for n in nodes if n.machine._cohort)}
        contexts = {(sid, hu2) for n in nodes if n.seeds for sid, hu2 in [(n.machine.session_id, messages.u2_of(n)[1])]}
        bodies = {body for cohort in cohorts.values() for body in cohort.bodies}
        bodies |= {n.machine._own_join.parse() for n in nodes if n.machine._own_join}
        known: set[bytes] = set()
        for member, kind, secret in self._all_secrets(nodes, cohorts, bodies):
            for sid, hu2 in contexts:
                if sid is not None:
                    known |= self._derived(member, kind, secret, sid, hu2, bodies)
        return known

    def _all_secrets(
        self, nodes: Sequence[Node], cohorts: dict[bytes, Cohort], bodies: set[JoinBody]
    ) -> set[tuple[str, str, bytes]]:
        """Owner, kind, secret."""
        found: set[tuple[str, str, bytes]] = set()
        shares: dict[tuple[bytes, str, str], dict[int, bytes]] = defaultdict(dict)
        for node in nodes:
            if isinstance(node.sent, Shares) and self.accomplices:
                self._read_items(node, shares, found)
            elif isinstance(node.sent, Unmask):
                cohort = messages.cohort_of(node)
                for owner, kind, share in messages.revealed(node.sent):
                    shares[cohort.session_id, owner, kind][cohort.point(node.id)] = share
            if node.member in self.insiders and node.machine._secrets is not None:
                self._read_memory(node, shares, found)
        for (sid, owner, kind), points in shares.items():
            place = (sid, owner, kind, frozenset(points))
            if place not in self._secrets:
                self._secrets[place] = _rebuilt(owner, kind, points, bodies)
            secret = self._secrets[place]
            if secret is not None:
                found.add((owner, kind, secret))
        return found

    def _read_items(
        self, node: Node, shares: dict[tuple[bytes, str, str], dict[int, bytes]], found: set[tuple[str, str, bytes]]
    ) -> None:
        """Shares dealt to places of the cohort that the adversary fills, and the secrets behind those places."""
        cohort = messages.cohort_of(node)
        for name, tag in node.tags.items():
            if tag == "now" or tag.startswith("old"):
                continue
            secrets = self._hands.secrets(int(name.split("-")[1]), node.offer, tag)
            found |= {(name, "self_mask", secrets.self_mask), (name, "mask_sk", secrets.mask)}
            parcel = messages.parcel_to(node.sent, name)
            if parcel is not None:
                pair = messages.opened_by(secrets, parcel.item, node)
                for kind in KINDS:
                    shares[cohort.session_id, node.id, kind][cohort.point(name)] = pair.of(kind).share

    @staticmethod
    def _read_memory(
        node: Node, shares: dict[tuple[bytes, str, str], dict[int, bytes]], found: set[tuple[str, str, bytes]]
    ) -> None:
        held = node.machine._secrets
        assert held is not None
        found |= {(node.id, "self_mask", bytes(held.self_mask)), (node.id, "mask_sk", bytes(held.mask_private))}
        if held.shares:
            cohort = messages.cohort_of(node)
            for dealer, pair in held.shares.items():
                for kind in KINDS:
                    shares[cohort.session_id, dealer, kind][cohort.point(node.id)] = pair.of(kind).share

    def _derived(
        self, member: str, kind: str, secret: bytes, sid: bytes, hu2: bytes, bodies: set[JoinBody]
    ) -> frozenset[bytes]:
        """Seeds that one secret gives in one session, with every JOIN that is known."""
        publics = sorted({(body.id, body.mask_public_key) for body in bodies if body.id != member})
        place = (member.encode(), kind.encode(), secret, sid, hu2, *(public for _, public in publics))
        if place not in self._seeds:
            if kind == "self_mask":
                made = {mask_seeds.self_seed(secret, sid, member, hu2)}
            else:
                made = {mask_seeds.pair_seed(secret, public, sid, member, peer, hu2) for peer, public in publics}
            self._seeds[place] = frozenset(made)
        return self._seeds[place]

    # --- sums ------------------------------------------------------------------------------------------------------

    def rows(self, nodes: Sequence[Node]) -> list[Row]:
        """The uploads among ``nodes``, as far as they are blind; what insiders put in is known to them."""
        known = self.seeds(nodes)
        return [
            Row(_unknown(node, known), self._column(node))
            for node in nodes
            if node.seeds and (node.parent is None or not node.parent.seeds)
        ]

    def _column(self, node: Node) -> Column | None:
        if node.content is None or node.member in self.insiders:
            return None
        member, base, making = node.content
        return base, node.offer.part, member, making

    def sums(self, facts: Iterable[Node]) -> tuple[list[Column], Basis]:
        """All sums of what honest members put in that can be computed: columns, and generators by column."""
        rows = self.rows(history(facts))
        columns = sorted({row.column for row in rows if row.column is not None})  # type: ignore[type-var]
        return columns, algebra.opened(rows, columns)  # type: ignore[return-value]

    # --- what may be known ------------------------------------------------------------------------------------------

    def violation(self, facts: Iterable[Node]) -> str | None:
        """What of ``facts`` gives away more than it may, or None.

        Each session opens at most one sum a cohort, over at least its quorum, of whom at least two are honest; all
        together tell no more than these sums, and none mixes bases or parts. A member answers three times at most,
        once more for each release. Over one base and part there is one sum. Where so many are enrolled that those who
        did not answer for it are enough for another, there may be others: then of all sums, and of those that are left
        when one is taken away, one has ``t - c_max`` honest members who are in no other, so that whatever combination
        of them is taken, at least as many updates stand in it alike. The root's release joins two sums into one.
        """
        facts = list(facts)
        sessions: dict[bytes, list[Node]] = defaultdict(list)
        for node in facts:
            if node.machine.session_id:
                sessions[node.machine.session_id].append(node)
        sums: dict[tuple[int, str], set[frozenset[Column]]] = defaultdict(set)
        sizes: dict[frozenset[Column], int] = {}
        for nodes in sessions.values():
            cohort, place = messages.cohort_of(nodes[0]), (nodes[0].offer.base, nodes[0].offer.part)
            for row in self._named_sums(nodes):
                found = frozenset(column for column, _ in row)
                if {value for _, value in row} != {1} or not self._is_one_sum(found, cohort):
                    return f"one session gives away {_shown(row)}"
                sums[place].add(found)
                sizes[found] = max(len(cohort.ids), sizes.get(found, 0))
        found = self._beyond(facts, [row for opened in sums.values() for row in opened])
        return found or self._too_many(facts, sums, sizes)

    def _beyond(self, facts: Sequence[Node], single: Sequence[frozenset[Column]]) -> str | None:
        """Whether all sessions together tell more than each by itself."""
        columns, basis = self.sums(facts)
        if len(basis) > len(single) or not spans([[int(c in row) for c in columns] for row in single], basis):
            return "sessions together give away " + " and ".join(map(_shown, self._named_sums(facts)))
        return None

    def _is_one_sum(self, found: frozenset[Column], cohort: Cohort) -> bool:
        """Whether a cohort may open exactly this sum."""
        summed = {f"site-{column[2]}" for column in found}
        others = {f"site-{member}" for member in (*self._hands.members, *self.insiders)} & set(cohort.ids)
        quorum = self.federation.quorum(len(cohort.ids))
        return len(summed) == len(found) >= 2 and summed <= set(cohort.ids) and len(summed) + len(others) >= quorum

    def _too_many(
        self,
        facts: Sequence[Node],
        sums: dict[tuple[int, str], set[frozenset[Column]]],
        sizes: dict[frozenset[Column], int],
    ) -> str | None:
        for (base, part), opened in sums.items():
            releases = {
                release
                for node in facts
                for release in node.offer.releases
                if (node.offer.base, part, node.offer.base_hash) == (base, release.part, release.base_model_hash)
            }
            answers = Counter(
                node.member
                for node in facts
                if (node.offer.base, node.offer.part) == (base, part) and isinstance(node.sent, Unmask)
            )
            allowed = MOST_ANSWERS + len(releases)
            if max(answers.values(), default=0) > allowed:
                return f"a member answers more than {allowed} times"
            groups = _joined(sorted(opened, key=sorted), releases)
            if len(groups) > 1 and self.federation.alone:
                return "several sums over one base: " + ", ".join(_names(one) for group in groups for one in group)
            if not self._told_apart(groups, sizes):
                return "sums over one base cover each other: " + ", ".join(_names(one) for one in opened)
        return None

    def _told_apart(self, groups: list[list[frozenset[Column]]], sizes: dict[frozenset[Column], int]) -> bool:
        """Whether one of the sums has enough honest members of its own, and so on with the others."""
        left = list(groups)
        while len(left) > 1:
            for group in left:
                rest = {column[2] for other in left if other is not group for one in other for column in one}
                own = {column[2] for one in group for column in one} - rest
                size = min(sizes[one] for one in group)
                if len(own) >= (size + self.federation.c_max) // 2 + 1 - self.federation.c_max:
                    left.remove(group)
                    break
            else:
                return False
        return True

    def _named_sums(self, facts: Iterable[Node]) -> Iterator[list[tuple[Column, int]]]:
        columns, basis = self.sums(facts)
        for row in basis:
            yield [(column, value) for column, value in zip(columns, row, strict=True) if value]


def _unknown(node: Node, known: set[bytes]) -> dict[Hashable, int]:
    """The masks of an upload whose seeds are not known; the same one twice may cancel itself."""
    signs: Counter[Hashable] = Counter()
    for seed, sign in node.seeds:
        if seed not in known:
            signs[seed] += sign
    return {seed: sign for seed, sign in signs.items() if sign}


def _joined(sums: list[frozenset[Column]], releases: Iterable[Release]) -> list[list[frozenset[Column]]]:
    """The sums in groups: two between which there is a release are in one, if each member put in one update."""
    groups = [[one] for one in sums]
    for release in releases:
        ends = [
            group
            for group in groups
            for one in group
            for u3 in (release.old_u3, release.new_u3)
            if {f"site-{column[2]}" for column in one} == {name for name in u3 if _is_honest(name, sums)}
        ]
        pair = [group for number, group in enumerate(ends) if group not in ends[:number]]
        if len(pair) == 2 and _is_one_training(chain(*pair[0], *pair[1])):
            groups = [group for group in groups if group not in pair] + [pair[0] + pair[1]]
    return groups


def _is_honest(name: str, sums: Iterable[frozenset[Column]]) -> bool:
    return any(name == f"site-{column[2]}" for one in sums for column in one)


def _is_one_training(columns: Iterable[Column]) -> bool:
    makings: dict[int, set[int]] = defaultdict(set)
    for _, _, member, making in columns:
        makings[member].add(making)
    return all(len(found) == 1 for found in makings.values())


def _names(one: Iterable[Column]) -> str:
    return "{" + ",".join(str(column[2]) for column in sorted(one)) + "}"


def _shown(row: Iterable[tuple[Column, int]]) -> str:
    words = ((column, value if value < PRIME // 2 else value - PRIME) for column, value in row)
    return " + ".join(f"{value} * update {making} of {member}" for (_, _, member, making), value in words)


def _rebuilt(owner: str, kind: str, points: dict[int, bytes], bodies: set[JoinBody]) -> bytes | None:
    """The secret behind shares, recognised by a JOIN of its owner."""
    secret = shamir.combine(points)
    for body in bodies:
        if body.id != owner:
            continue
        try:
            right = (
                mask_seeds.self_mask_commitment(owner, secret) == body.self_mask_commitment
                if kind == "self_mask"
                else keys.x25519_public(secret) == body.mask_public_key
            )
        except ProtocolError:
            continue
        if right:
            return secret
    return None
