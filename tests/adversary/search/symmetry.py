"""Honest members are alike: of situations that differ by their names only, one is looked at."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise, permutations
from typing import NamedTuple

from tests.adversary.search.honest import Durable


class Label(NamedTuple):
    """One thing that happened to a member: sets of members are bit masks, so that members can be renamed in it."""

    kind: str
    member: int
    sets: tuple[int, ...]
    rest: Hashable = ()


def mask_of(members: Iterable[int | str]) -> int:
    return sum(1 << (int(member.split("-")[1]) if isinstance(member, str) else member) for member in members)


def shown(mask: int) -> str:
    return "{" + ",".join(str(index) for index in range(mask.bit_length()) if mask >> index & 1) + "}"


@lru_cache(maxsize=16)
def _renamings(n: int, honest: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """New names of all members, and of all their sets, for each order of the honest ones."""
    found = []
    for order in permutations(range(honest)):
        names = (*order, *range(honest, n))
        sets = tuple(mask_of(names[index] for index in range(n) if mask >> index & 1) for mask in range(1 << n))
        found.append((names, sets))
    return tuple(found)


def canonical(labels: Iterable[Label], n: int, honest: int) -> Hashable:
    """The same for two sets of labels that differ by the names of honest members only."""
    mine = [(label.kind, label.member, label.sets, repr(label.rest)) for label in labels]
    return tuple(
        min(
            sorted(
                (kind, names[member], tuple([sets[mask] for mask in masks]), rest) for kind, member, masks, rest in mine
            )
            for names, sets in _renamings(n, honest)
        )
    )


def alike(labels: Sequence[Label], n: int, members: Sequence[int]) -> dict[int, int]:
    """For a member, one before it that nothing in ``labels`` tells apart from it: all stays true with names swapped."""
    now, found = set(labels), {}
    for one, other in pairwise(members):
        names = {one: other, other: one}
        swapped = {
            Label(
                label.kind,
                names.get(label.member, label.member),
                tuple(mask_of(names.get(i, i) for i in range(n) if mask >> i & 1) for mask in label.sets),
                label.rest,
            )
            for label in labels
        }
        if swapped == now:
            found[other] = one
    return found


def profile_labels(durables: Sequence[Durable]) -> list[Label]:
    """What members remember, to be compared under other names."""
    labels = []
    for member, durable in enumerate(durables):
        for number, record in enumerate(durable.records):
            ends = (record.release.old_u3, record.release.new_u3) if record.release else ((), ())
            sets = (mask_of(record.u3), *(mask_of(end) for end in ends))
            labels.append(Label("record", member, sets, (number, record.base_model_hash, record.part)))
        kept = tuple(content[1:] for content in durable.stored)
        labels += [Label("convicted", member, (mask_of([who]),), (base, part)) for base, part, who in durable.convicted]
        labels.append(Label("kept", member, (), (kept, durable.terms, tuple(base for base, _ in durable.given))))
    return labels
