"""Weakenings of the production code, each with the case of the search that finds what it gives away.

``where`` names the case; a mutant that gives nothing away says ``why``, and where a second defence is the reason,
another mutant takes that one away too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from tests.adversary.search.honest import randomness

from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.session import cohort as cohort_module
from fedddpm_protocol.session import dealing as dealing_module
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session import participant as participant_module
from fedddpm_protocol.session import spent as spent_module
from fedddpm_protocol.session.cohort import Cohort, Sharing, SurvivorSet
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire import phases
from fedddpm_protocol.wire.messages import MaskKind, Unmask
from fedddpm_protocol.wire.phases import ClientState, Step

Weaken = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """One weakening, or several at once. Exactly one of ``where`` and ``why``."""

    weaken: tuple[Weaken, ...]
    where: str = ""
    why: str = ""


def swap(owner: Any, name: str, new: Any) -> Weaken:
    return lambda patch: patch.setattr(owner, name, new)


def around(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Weaken:
    """Put ``make(production)`` in the place of a function."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def blind(module: Any, *tags: str) -> Weaken:
    """No signature under one of ``tags`` is looked at in a module."""

    def verify(public_key: bytes, kind: str, *rest: Any) -> None:
        if kind not in tags:
            keys.verify(public_key, kind, *rest)

    def weaken(patch: pytest.MonkeyPatch) -> None:
        names = ("x25519_shared", "require_session_key", "SigningKey")
        others = {name: (lambda *given, name=name: getattr(keys, name)(*given)) for name in names}  # type: ignore[misc]
        patch.setattr(module, "keys", SimpleNamespace(verify=verify, **others))

    return weaken


def nothing(*given: Any, **named: Any) -> None:
    """In the place of a check."""


# --- thresholds and smallest sets ------------------------------------------------------------------------------------


def threshold(formula: Callable[[int, int], int]) -> Weaken:
    return swap(Roster, "threshold", lambda self, n: max(1, formula(n, self.c_max)))


def dealt_for(formula: Callable[[int], int]) -> Weaken:
    return around(
        dealing_module,
        "split",
        lambda split: lambda secret, t, points, draw: split(secret, max(1, formula(t)), points, draw),
    )


def without_floor(method: str) -> Weaken:
    """The institution's floor, and n_min in it, does not count in one step."""

    def make(step: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: Participant, *given: Any) -> Any:
            kept, self._floor = self._floor, 0
            try:
                return step(self, *given)
            finally:
                self._floor = kept

        return weak

    return around(Participant, method, make)


def _any_sharers(self: Cohort, deals: Any) -> Sharing:
    dealt = {self.verify_deal(deal).dealer: deal for deal in deals}
    ids = tuple(sorted(dealt))
    return Sharing(self, ids, tuple(dealt[i] for i in ids), tuple(dealt[i].parse() for i in ids))


def _any_survivors(self: Sharing, digests: Any) -> SurvivorSet:
    ids = tuple(sorted(digests))
    return SurvivorSet(self, ids, tuple(digests[member] for member in ids))


NO_FLOOR = tuple(without_floor(f"receive_{step}") for step in ("cohort", "shares", "survivors"))
QUORUM_IS_T = swap(Roster, "quorum", Roster.threshold)
SHARERS = swap(Cohort, "sharing", _any_sharers)


def _lawless(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Roster, "__post_init__", nothing)


# --- confirmations ---------------------------------------------------------------------------------------------------


def hu3(*fields: Callable[[SurvivorSet], tuple[bytes, ...]]) -> Weaken:
    return swap(
        SurvivorSet,
        "hu3",
        property(lambda self: canonical.tagged_hash("u3", *(value for field in fields for value in field(self)))),
    )


def _session(survivors: SurvivorSet) -> tuple[bytes, ...]:
    return (survivors.sharing.cohort.session_id,)


def _sharers(survivors: SurvivorSet) -> tuple[bytes, ...]:
    return (survivors.sharing.hu2,)


def _names(survivors: SurvivorSet) -> tuple[bytes, ...]:
    return tuple(member.encode() for member in survivors.ids)


def _digests(survivors: SurvivorSet) -> tuple[bytes, ...]:
    return survivors.digests


def _counting_messages(step: Callable[..., Any]) -> Callable[..., Any]:
    def weak(self: Participant, confirmations: Any, commit: Any) -> Unmask:
        survivors = self._survivors
        assert survivors is not None
        needed = survivors.sharing.cohort.threshold
        survivors.__dict__["enough"] = lambda count: len(confirmations) >= needed
        return step(self, confirmations, commit)  # type: ignore[no-any-return]

    return weak


def _of_anybody(self: SurvivorSet, confirmation: Any) -> None:
    public_key = self.sharing.cohort.roster.public_key(confirmation.id)
    keys.verify(public_key, "confirm", self.hu3, confirmation.signature, confirmation.id)


def _confirms_again(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(phases.CLIENT_STEPS, (ClientState.CONFIRMED, Step.SURVIVORS), ClientState.CONFIRMED)


def tells(kinds: Callable[[bool], tuple[MaskKind, ...]]) -> Weaken:
    """An UNMASK with shares of these kinds; given is whether their owner is a survivor."""

    def make(step: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: Participant, confirmations: Any, commit: Any) -> Unmask:
            survivors, held = self._survivors, dict(self._secrets.shares)  # type: ignore[union-attr]
            sent = step(self, confirmations, commit)
            assert survivors is not None
            fields = canonical.unlp(sent.body)[:2]
            for member in survivors.sharing.ids:
                for kind in kinds(member in survivors.ids):
                    dealt = held[member].of(kind)
                    fields += [member.encode(), kind.encode(), dealt.share, dealt.nonce]
            return Unmask(id=sent.id, body=canonical.lp(*fields), signature=sent.signature)

        return weak

    return around(Participant, "receive_confirmations", make)


# --- SPENT, releases, trainings --------------------------------------------------------------------------------------


def remembers(rule: Callable[[tuple[str, ...], tuple[str, ...]], bool]) -> tuple[Weaken, ...]:
    """A spent base may be summed again where ``rule(recorded, asked)`` says so; in the machine and in the log."""

    def asked(self: Participant, u3: tuple[str, ...]) -> None:
        if self._allowed_u3 and not rule(self._allowed_u3, u3):
            raise spent_module.SpentError("refused")

    def make_cohort(step: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: Participant, joins: Any) -> Any:
            recorded, ids = self._allowed_u3, tuple(sorted(join.parse().id for join in joins))
            if recorded and rule(recorded, ids):
                self._allowed_u3 = ids
            try:
                return step(self, joins)
            finally:
                self._allowed_u3 = recorded

        return weak

    def make_check(check: Callable[..., Any]) -> Callable[..., Any]:
        def weak(recorded: tuple[str, ...], used: Any, record: Any, *more: Any) -> None:
            allowed = record.release is None and recorded and rule(recorded, record.u3)
            check(record.u3 if allowed else recorded, used, record, *more)

        return weak

    return (
        swap(Participant, "_check_allowed", asked),
        around(Participant, "receive_cohort", make_cohort),
        around(spent_module, "check_spent", make_check),
    )


def keeps_one(slot: Callable[[bytes, str], object]) -> Weaken:
    """A log with room for one record in each ``slot(base, part)``."""

    def make(keep: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: SpentLog, record: Any) -> None:
            mine = slot(record.base_model_hash, record.part)
            for place in [place for place in self._survivors if slot(*place) == mine]:
                del self._survivors[place]
            keep(self, record)

        return weak

    return around(SpentLog, "_keep", make)


def starts(**changes: Any) -> Weaken:
    """A machine that begins with other words than it was given."""

    def make(init: Callable[..., Any]) -> Callable[..., Any]:
        def weak(self: Participant, **given: Any) -> None:
            init(self, **given | {name: make(given) if callable(make) else make for name, make in changes.items()})

        return weak

    return around(Participant, "__init__", make)


def _answers_first(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, confirmations, commit: step(self, confirmations, nothing)


def _unlocked_by_release(init: Callable[..., Any]) -> Callable[..., Any]:
    def weak(self: Participant, **given: Any) -> None:
        init(self, **given)
        if self._release is not None:
            self._allowed_u3 = ()

    return weak


def _release_unchecked(check: Callable[..., Any]) -> Callable[..., Any]:
    def weak(recorded: Any, used: Any, record: Any, *more: Any) -> None:
        if record.release is None:
            check(recorded, used, record, *more)

    return weak


def any_release(*fields: str) -> Weaken:
    """The root's release is taken if it agrees in these ``fields`` only."""

    def weak(recorded: Any, roster: Roster, base: bytes, part: str, used: Any, _: Any = ()) -> Any:
        mine = {"base_model_hash": base, "part": part, "old_u3": recorded}
        fits = (r for r in roster.releases if all(getattr(r, name) == mine[name] for name in fields) and r not in used)
        return next(fits, None) if recorded else None

    return swap(spent_module, "usable_release", weak)


def _never_used(keep: Callable[..., Any]) -> Callable[..., Any]:
    def weak(self: SpentLog, record: Any) -> None:
        keep(self, record)
        self._used.clear()

    return weak


# --- JOINs, shares, masks --------------------------------------------------------------------------------------------


def _any_own_join(step: Callable[..., Any]) -> Callable[..., Any]:
    def weak(self: Participant, joins: Any) -> Any:
        mine = [join for join in joins if join.parse().id == self.member_id]
        kept, self._own_join = self._own_join, (mine or list(joins) or [self._own_join])[0]
        try:
            return step(self, joins)
        except ValueError as error:  # no DEAL can be made without a place in the cohort
            raise cohort_module.MalformedError(str(error)) from error
        finally:
            self._own_join = kept

    return weak


def _keys_twice(opening: Callable[..., Any]) -> Callable[..., Any]:
    def weak(plan: Any, roster: Roster, joins: Any) -> Cohort:
        ordered = sorted(joins, key=lambda join: join.parse().id)
        bodies = tuple(cohort_module.verify_join(plan, roster, join) for join in ordered)
        if len({body.id for body in bodies}) < len(bodies):
            return opening(plan, roster, joins)  # type: ignore[no-any-return]
        cohort = Cohort(plan, roster, tuple(ordered), bodies)
        if len(ordered) < max(cohort.quorum, 2):
            raise cohort_module.CohortTooSmallError("too few")
        return cohort

    return weak


def _any_spec(plan: Any, roster: Roster, join: Any) -> Any:
    body = join.parse()
    keys.verify(roster.public_key(body.id), "join", join.body, join.signature, body.id)
    return body


def seeds(*left_out: str) -> tuple[Weaken, ...]:
    """Seeds that do not depend on ``sid``, ``hu2`` or ``ids``."""

    def pair(seed: Callable[..., bytes]) -> Callable[..., bytes]:
        def weak(private: bytes, public: bytes, sid: bytes, one: str, other: str, hu2: bytes) -> bytes:
            names = ("", "") if "ids" in left_out else (one, other)
            return seed(private, public, *_without(left_out, sid), *names, *_without_hu2(left_out, hu2))

        return weak

    def own(seed: Callable[..., bytes]) -> Callable[..., bytes]:
        def weak(secret: bytes, sid: bytes, member: str, hu2: bytes) -> bytes:
            return seed(secret, *_without(left_out, sid), member, *_without_hu2(left_out, hu2))

        return weak

    return around(mask_seeds, "pair_seed", pair), around(mask_seeds, "self_seed", own)


def _without(left_out: tuple[str, ...], sid: bytes) -> tuple[bytes]:
    return (b"" if "sid" in left_out else sid,)


def _without_hu2(left_out: tuple[str, ...], hu2: bytes) -> tuple[bytes]:
    return (b"" if "hu2" in left_out else hu2,)


def masks(kept: Callable[[list[Any]], list[Any]]) -> Weaken:
    """An upload under some of its masks; the first is the member's own."""
    return around(participant_module, "mask_streams", lambda make: lambda *given: kept(make(*given)))


SAME_KEYS = starts(random_bytes=lambda given: randomness(int(given["member_id"].split("-")[1]), "always"))
JOIN_UNSIGNED, DEAL_UNSIGNED, CONFIRM_UNSIGNED = (blind(cohort_module, tag) for tag in ("join", "deal", "confirm"))
JOIN_AND_DEAL_UNSIGNED = blind(cohort_module, "join", "deal")
UNREAD = starts(recorded_u3=())
UNCHECKED = swap(spent_module, "check_spent", nothing)
KEYS_TWICE = around(participant_module, "open_cohort", _keys_twice)
