"""Everything that the aggregator and its accomplices can do in one session, step by step, up to names.

In each step every honest member may be shown something else. What a machine refuses ends it, as silence would, so a
refused message is tried once and not gone on from. Silence beside a message that is accepted is not looked at either:
one more message only adds to what the adversary has, and what is durable changes when an update is given and when a
session is answered for; who answers is therefore free (``some_answer``).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, combinations_with_replacement, product
from types import MappingProxyType

from tests.adversary.search import messages
from tests.adversary.search.honest import Durable, Federation, Node, Offer, committing, join, join_of, roots, upload
from tests.adversary.search.messages import Accomplices, Filling, Parcel
from tests.adversary.search.symmetry import Label, alike, canonical, mask_of, profile_labels

from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.session import participant as participant_module
from fedddpm_protocol.wire.messages import Confirmation, Deal

Making = Mapping[int, int]  # by member: which time it makes an update that was lost
NONE: Making = MappingProxyType({})
Shown = dict[int, Node]  # by member: its machine after what it was shown


@dataclass(frozen=True)
class Breadth:
    """How many stories are told at once in each step: 0 means to each member its own."""

    cohorts: int = 0
    sharers: int = 0
    survivors: int = 0
    some_answer: bool = False  # also where only some of those answer who would
    tricks: bool = True  # JOINs that are not what they seem, and what is left of earlier sessions


ALL = Breadth()  # to each member its own story, in every step
PLAIN = Breadth(1, 1, 1, tricks=False)  # one story in each step


@dataclass(frozen=True)
class Outcome:
    """How a session ended: what members remember, and what the adversary saw last of each."""

    durables: tuple[Durable, ...]
    facts: frozenset[Node]


class Sessions:
    """All sessions of one federation under the code as it is now; every step of a machine is taken once."""

    def __init__(self, federation: Federation, spoil: bool = False) -> None:
        self.federation, self.hands = federation, Accomplices(federation, spoil)
        self._joined: dict[Hashable, Node | None] = {}
        self._usable: dict[tuple[bytes, tuple[str, ...], bytes], bool] = {}
        self._made: dict[tuple[bytes, tuple[str, ...]], list[Confirmation]] = {}
        self.steps = 0

    # --- JOIN -------------------------------------------------------------------------------------------------------

    def joined(self, offer: Offer, durables: Sequence[Durable], life: int = 0, making: Making = NONE) -> Shown:
        """All that start for an offer and do not refuse it."""
        found = {}
        for member in self.federation.honest:
            place = (member, offer, durables[member].profile(), life, making.get(member, 0))
            if place not in self._joined:
                self._joined[place] = join(
                    self.federation, member, offer, durables[member], life, making.get(member, 0)
                )
            node = self._joined[place]
            if node is not None:
                found[member] = node
        return found

    def explore(
        self,
        offer: Offer,
        durables: tuple[Durable, ...],
        breadth: Breadth,
        past: Sequence[Node] = (),
        life: int = 0,
        making: Making = NONE,
        who: Collection[int] = range(128),
    ) -> Iterator[Outcome]:
        """Outcomes of one session in which the adversary knows ``past``; each set of facts once.

        ``who``: members that are offered it.
        """
        start = {m: node for m, node in self.joined(offer, durables, life, making).items() if m in who}
        seen: set[Hashable] = set()
        profile = profile_labels(durables)
        for cohorts in self.cohorts(start, offer, breadth, past):
            if self._known(seen, profile, cohorts):
                continue
            before = [*profile, *labels_of(cohorts)]
            for uploads in self.told(self.uploads(cohorts, breadth, past), breadth.sharers, before):
                if not uploads or self._known(seen, profile, uploads):
                    continue
                facts: set[frozenset[Node]] = set()
                before = [*profile, *labels_of(uploads)]
                for confirmed in self.told(self.confirmed(uploads), breadth.survivors, before):
                    for answered in self.answered(confirmed, durables, breadth, past):
                        found = frozenset((uploads | answered).values())
                        if found not in facts:
                            facts.add(found)
                            yield Outcome(_after(durables, found), found)
                if not facts:
                    found = frozenset(uploads.values())
                    yield Outcome(_after(durables, found), found)

    def _known(self, seen: set[Hashable], profile: Sequence[Label], shown: Shown) -> bool:
        """Whether this was looked at before, perhaps under other names."""
        name = canonical([*profile, *labels_of(shown)], self.federation.n, len(self.federation.honest))
        if name in seen:
            return True
        seen.add(name)
        return False

    def told(self, options: Mapping[int, Mapping[int, Node]], stories: int, before: Sequence[Label]) -> Iterator[Shown]:
        """Who is shown what. ``options``: by member and set, the machine after that set; at most ``stories`` sets.

        Members that nothing told apart ``before`` are shown sets in the order of their sizes.
        """
        twins = alike(before, self.federation.n, sorted(options))
        every = sorted({view for sets in options.values() for view in sets})
        for views in combinations_with_replacement(every, stories) if stories else [every]:
            choices = {m: {view: sets[view] for view in {*views} & sets.keys()} for m, sets in options.items()}
            yield from _in_order([(m, sets) for m, sets in sorted(choices.items()) if sets], twins)

    # --- COHORT ------------------------------------------------------------------------------------------------------

    def pool(self, start: Shown, offer: Offer, breadth: Breadth, past: Sequence[Node]) -> dict[int, list[Filling]]:
        """What can stand in each place of a cohort, and is not refused at first sight."""
        pool = {member: [Filling("now", node.sent)] for member, node in start.items()}
        pool |= {member: [self.hands.join(member, offer, "own")] for member in self.hands.members}
        if not breadth.tricks or not start:
            return pool
        basic = {member: fillings[0] for member, fillings in pool.items()}
        tricks = [Filling(f"old{number}", join_of(node)) for number, node in enumerate(roots(past))]
        tricks += [self.hands.join(member, offer, "forged") for member in start]
        for member in self.hands.members:
            tricks.append(self.hands.join(member, offer, "other"))
            copied = [node.sent.parse().mask_public_key for node in start.values()][:1]
            tricks += [self.hands.join(member, offer, "copied", key) for key in copied]
        plan, roster = next((node.machine.plan, node.machine._roster) for node in start.values())
        for trick in tricks:
            member = int(trick.body.id.split("-")[1])
            try:
                participant_module.open_cohort(plan, roster, [f.join for f in (basic | {member: trick}).values()])
            except ProtocolError:
                continue
            pool.setdefault(member, []).append(trick)
        return pool

    def cohorts(self, start: Shown, offer: Offer, breadth: Breadth, past: Sequence[Node]) -> Iterator[Shown]:
        """Members after SHARES, in groups that were shown the same cohort and can go on together."""
        pool = self.pool(start, offer, breadth, past)
        sets: dict[bytes, Shown] = {}
        for member, node in start.items():
            for fillings in product(*([None, *fillings] for fillings in pool.values())):
                chosen = [filling for filling in fillings if filling is not None]
                child = self.shown_cohort(node, chosen)
                if child is not None:
                    sets.setdefault(messages.cohort_of(child).session_id, {})[member] = child
        alive = [shown for shown in sets.values() if self._goes_on(shown, past)]
        yield from alive
        if breadth.cohorts == 1:
            return
        for one, other in combinations(alive, 2):
            for split in _splits(one, other):
                if all(self._goes_on(group, past) for group in split):
                    yield split[0] | split[1]

    def shown_cohort(self, node: Node, chosen: Sequence[Filling]) -> Node | None:
        """The machine after SHARES, for the cohort of these JOINs."""
        key = ("cohort", *(filling.join.body for filling in chosen))
        return node.follow(key, lambda child: self._show_cohort(child, chosen))

    def _show_cohort(self, node: Node, chosen: Sequence[Filling]) -> None:
        self.steps += 1
        messages.deliver_cohort(node, chosen)
        kinds = sorted({filling.tag for filling in chosen})
        sets = tuple(mask_of(f.body.id for f in chosen if f.tag == kind) for kind in kinds)
        node.label = ("cohort", node.member, sets, tuple(kinds))

    def _goes_on(self, shown: Shown, past: Sequence[Node]) -> bool:
        """Whether any of a group accepts the shares of the whole group, with forged ones or without."""
        return any(
            self._upload_options(node, shown, past, whole)
            for node in shown.values()
            for whole in (("now", "own", "other", "copied", "forged"), ("now", "own", "other", "copied"))
        )

    # --- SHARES and MASKED ------------------------------------------------------------------------------------------

    def uploads(self, shown: Shown, breadth: Breadth, past: Sequence[Node]) -> dict[int, dict[int, Node]]:
        used = past if breadth.tricks else ()
        options = {member: self._upload_options(node, shown, used) for member, node in shown.items()}
        if breadth.tricks:
            for member, found in options.items():
                found |= self._without_own_deal(shown[member], shown)
        return options

    def _without_own_deal(self, node: Node, shown: Shown) -> dict[int, Node]:
        """The same where the own deal is missing, or is another one."""
        senders = [sender for sender in range(self.federation.n) if sender != node.member]
        inbox = [parcel for sender in senders for parcel in self._items(node, sender, shown, ())[:1]]
        children = (self._shown_shares(node, inbox, own) for own in messages.other_own(node, self.hands))
        return {mask_of(messages.u2_of(child)[0]): child for child in children if child is not None}

    def _upload_options(
        self, node: Node, shown: Shown, past: Sequence[Node], whole: tuple[str, ...] = ()
    ) -> dict[int, Node]:
        """By U2: the machine after its upload. ``whole``: only with all shares from places that are filled so."""
        senders = [sender for sender in range(self.federation.n) if sender != node.member]
        items = [self._items(node, sender, shown, past) for sender in senders]
        if whole:
            tags = [node.tags.get(f"site-{sender}") for sender in senders]
            items = [kinds[:1] if tag in whole else [] for tag, kinds in zip(tags, items, strict=True)]
        found: dict[int, Node] = {}
        for chosen in product(*((kinds or [None]) if whole else [None, *kinds] for kinds in items)):
            inbox = [item for item in chosen if item is not None]
            child = self._shown_shares(node, inbox, [messages.own_deal_of(node)])
            if child is not None:
                found.setdefault(mask_of(messages.u2_of(child)[0]), child)
        return found

    def _shown_shares(self, node: Node, inbox: Sequence[Parcel], own: Sequence[Deal]) -> Node | None:
        """The machine after its upload, under the deals in ``inbox`` and what stands in the place of its own."""
        return node.follow(
            ("shares", *(parcel.deal.body for parcel in inbox), *(deal.body for deal in own)),
            lambda child: self._show_shares(child, inbox, own),
        )

    def _items(self, node: Node, sender: int, shown: Shown, past: Sequence[Node]) -> list[Parcel]:
        """What ``sender`` could have sent to this machine: now, to others of its name, or in an earlier session."""
        cohort, name = messages.cohort_of(node), f"site-{sender}"
        items: list[Parcel | None] = []
        tag = node.tags.get(name, "") if node.id in cohort.ids else ""
        if tag in ("own", "other", "copied", "forged"):
            items.append(self.hands.parcel(cohort, node.offer, sender, tag, node.id))
        nodes = [shown[sender]] if sender in shown else []
        nodes += [old for old in past if old.member == sender and old.sent is not None][:1]
        items += (messages.parcel_to(other.sent, node.id) for other in nodes if tag and hasattr(other.sent, "items"))
        return [item for item in items if item is not None]

    def _show_shares(self, node: Node, inbox: Sequence[Parcel], own: Sequence[Deal]) -> None:
        self.steps += 1
        messages.deliver_shares(node, inbox, own)
        upload(node)
        _, member, sets, rest = node.label
        node.label = ("upload", member, (mask_of(messages.u2_of(node)[0]), *sets), rest)

    # --- CONFIRM and UNMASK -----------------------------------------------------------------------------------------

    def confirmed(self, uploads: Shown) -> dict[int, dict[int, Node]]:
        """By U3: the machine after its confirmation."""
        found: dict[int, dict[int, Node]] = {}
        for member, node in uploads.items():
            digests = {
                other.id: messages.digest_of(other)
                for other in uploads.values()
                if other.machine.session_id == node.machine.session_id
            }
            found[member] = {}
            for view, child in self._survivor_options(node, digests):
                again = next(self._survivor_options(child, digests), None)
                found[member][view] = child if again is None else self._all_confirmed(node, view, digests)
        return found

    def _all_confirmed(self, node: Node, last: int, digests: Mapping[str, bytes]) -> Node:
        """A machine that confirms more than once, which none should: all sets that it takes, ``last`` at the end."""
        for view in [view for view, _ in self._survivor_options(node, digests) if view != last]:
            node = dict(self._survivor_options(node, digests))[view]
        return dict(self._survivor_options(node, digests))[last]

    def _survivor_options(self, node: Node, digests: Mapping[str, bytes]) -> Iterator[tuple[int, Node]]:
        """Every U3 that the machine confirms. After one that it did confirm, a refusal stands for all."""
        ids = messages.u2_of(node)[0]
        for chosen in chain.from_iterable(combinations(ids, size) for size in range(len(ids), 0, -1)):
            listed = {name: digests.get(name, bytes(32)) for name in chosen}
            child = node.follow(
                ("survivors", *listed.items()),
                lambda child, listed=listed: self._show_survivors(child, listed),  # type: ignore[misc]
            )
            if child is not None:
                yield mask_of(chosen), child
            elif node.label[0] == "confirm" and len(chosen) == len(ids):
                return

    def _show_survivors(self, node: Node, listed: Mapping[str, bytes]) -> None:
        self.steps += 1
        messages.deliver_survivors(node, messages.survivors_message(listed))
        kind, member, sets, rest = node.label
        node.label = ("confirm", member, (mask_of(listed), *(sets[1:] if kind == "confirm" else sets)), rest)

    def answered(
        self, confirmed: Shown, durables: Sequence[Durable], breadth: Breadth, past: Sequence[Node]
    ) -> Iterator[Shown]:
        """Who answers: all that would, and where asked for every part of them."""
        given = [sent for node in confirmed.values() for sent in _confirmations_of(node)]
        given += [node.sent for node in past if isinstance(node.sent, Confirmation)] if breadth.tricks else []
        answers: Shown = {}
        for member, node in confirmed.items():
            confirmations = self._confirmations(node, given)
            durable = _merged(node.durable, durables[member])
            child = node.follow(
                ("confirmations", durable.profile(), *(c.signature for c in confirmations)),
                lambda child, confirmations=confirmations, durable=durable: self._show_confirmations(  # type: ignore[misc]
                    child, confirmations, durable
                ),
            )
            if child is not None:
                answers[member] = child
        yield answers
        if breadth.some_answer:
            for size in range(len(answers)):
                for members in combinations(sorted(answers), size):
                    yield {member: answers[member] for member in members}

    def _confirmations(self, node: Node, given: Sequence[Confirmation]) -> list[Confirmation]:
        """All that this machine would take; forged ones last."""
        survivors = messages.survivors_of(node)
        place = (survivors.hu3, survivors.ids)
        if place not in self._made:
            names = {f"site-{member}" for member in self.hands.members} | {*survivors.ids}
            made = (self.hands.confirm(name, survivors.hu3) for name in sorted(names))
            self._made[place] = messages.usable(survivors, made)
        taken: dict[str, Confirmation] = {}
        for confirmation in (*given, *self._made[place]):
            if confirmation.id in taken:
                continue
            which = (*place, confirmation.signature)
            if which not in self._usable:
                self._usable[which] = bool(messages.usable(survivors, [confirmation]))
            if self._usable[which]:
                taken[confirmation.id] = confirmation
        kept = [taken[name] for name in sorted(taken)]
        return [*kept, *kept[:1] * self.federation.n] if kept else []

    def _show_confirmations(self, node: Node, confirmations: Sequence[Confirmation], durable: Durable) -> None:
        self.steps += 1
        node.durable = durable
        node.sent = node.machine.receive_confirmations(confirmations, committing(node))
        _, member, sets, rest = node.label
        node.label = ("answer", member, sets, rest)


def labels_of(shown: Shown) -> list[Label]:
    return [Label(*node.label) for node in shown.values()]


def _in_order(options: Sequence[tuple[int, Mapping[int, Node]]], twins: Mapping[int, int]) -> Iterator[Shown]:
    """One set for each member; of a member and its twin before it, the later has the larger one."""
    if not options:
        yield {}
        return
    *others, (member, sets) = options
    for shown in _in_order(others, twins):
        twin = shown.get(twins.get(member, member))
        least = twin.label[2][0].bit_count() if twin is not None else 0
        for view, node in sets.items():
            if view.bit_count() >= least:
                yield {**shown, member: node}


def _confirmations_of(node: Node) -> Iterator[Confirmation]:
    here: Node | None = node
    while here is not None and isinstance(here.sent, Confirmation):
        yield here.sent
        here = here.parent


def _merged(node: Durable, now: Durable) -> Durable:
    """What is on the disk when a machine answers: records that another machine of the member wrote meanwhile too."""
    return Durable(now.records, node.terms, node.given, node.stored, now.convicted)


def _after(durables: Sequence[Durable], facts: frozenset[Node]) -> tuple[Durable, ...]:
    found = list(durables)
    for node in facts:
        found[node.member] = node.durable
    return tuple(found)


def _splits(one: Shown, other: Shown) -> Iterator[tuple[Shown, Shown]]:
    """Two groups: those that can stand in both, in either way."""
    both = sorted(one.keys() & other.keys())
    for size in range(len(both) + 1):
        for first in combinations(both, size):
            left = {m: node for m, node in one.items() if m not in both or m in first}
            right = {m: node for m, node in other.items() if m not in both or m not in first}
            if left and right:
                yield left, right
