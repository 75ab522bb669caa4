"""No lie that a server and up to c_max members can tell isolates an honest institution.

The search is random and bounded; `mutants` show that the same search, or one scripted lie, does find an isolated input
as soon as a rule is taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.protocol.support.lying_server import NOTHING, World

from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.session.cohort import SurvivorSet
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.phases import ClientState

CONFIGURATIONS = [(3, 0, 3), (4, 0, 3), (4, 1, 3), (5, 1, 3), (5, 2, 4), (6, 1, 3)]
BOUNDED = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class Forgetful(SpentLog):
    """The mutant's log: nothing is ever spent."""

    def recorded(self, base: bytes, part: str) -> tuple[str, ...]:
        return ()

    def commit(self, record: SpentRecord) -> None:
        return


class Unbound(SpentLog):
    """The mutant's log: a base model may be trained on under any terms, and any update of it be sent."""

    def agree(self, base: bytes, terms_hash: bytes) -> None:
        return

    def give(self, base: bytes, update_digest: bytes) -> None:
        return


class Ungiven(SpentLog):
    """The mutant's log: terms are bound, and any update under them may be sent."""

    def give(self, base: bytes, update_digest: bytes) -> None:
        return


class LyingServer(RuleBasedStateMachine):
    """Arbitrary mixes of genuine messages: other subsets, other views, other attempts, replays, retries."""

    new_log: Callable[[], SpentLog] = SpentLog

    @initialize(configuration=st.sampled_from(CONFIGURATIONS), alone=st.booleans())
    def begin(self, configuration: tuple[int, int, int], alone: bool) -> None:
        self.world = World(*configuration, new_log=self.new_log)
        self.attempt = 0
        for member in self.first_told(alone):
            self.world.start(member, self.attempt)

    def first_told(self, alone: bool) -> tuple[str, ...]:
        """Who is offered the first attempt."""
        return self.world.honest

    def draw_view(self, data: st.DataObject) -> set[str]:
        """Mostly everybody or everybody but one, now and then any set: so that sessions come to an end at all."""
        ids = self.world.roster.ids
        missing = data.draw(st.one_of(st.just([]), st.lists(st.sampled_from(ids), max_size=2)), label="missing")
        return set(ids) - set(missing)

    @rule(data=st.data(), same=st.booleans())
    def new_attempt(self, data: st.DataObject, same: bool) -> None:
        """Claim that the attempt failed; some members, or all, join the next one on the same base model."""
        self.attempt += not same
        for member in self.draw_view(data) & set(self.world.honest):
            self.world.start(member, self.attempt)

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        """The same story for everybody who is told one."""
        members, view = self.draw_view(data), self.draw_view(data)
        for member in sorted(members & set(self.world.honest)):
            self.world.step(member, view)

    @rule(data=st.data(), steps=st.integers(1, 5))
    def advance_all(self, data: st.DataObject, steps: int) -> None:
        """Everybody moves on, on one view, up to the end of the session."""
        view = self.draw_view(data)
        for _ in range(steps):
            for member in self.world.honest:
                self.world.step(member, view)

    @rule(data=st.data())
    def advance_apart(self, data: st.DataObject) -> None:
        """Two stories at once: some see one view, the others another."""
        first, one, other = self.draw_view(data), self.draw_view(data), self.draw_view(data)
        for member in self.world.honest:
            self.world.step(member, one if member in first else other)

    @rule(data=st.data(), lie=st.booleans(), any_set=st.booleans())
    def tell_one(self, data: st.DataObject, lie: bool, any_set: bool) -> None:
        """One member gets its message early, from any set, perhaps with replayed or misrouted ones among it."""
        member = data.draw(st.sampled_from(self.world.honest), label="member")
        ids = st.sampled_from(self.world.roster.ids)
        view = data.draw(st.sets(ids), label="view") if any_set else self.draw_view(data)
        self.world.step(member, view, lie=lie)

    @invariant()
    def nobody_is_isolated(self) -> None:
        found = self.world.violations() if hasattr(self, "world") else []
        if found:
            raise IsolatedError("; ".join(found))


class IsolatedError(Exception):
    """The adversary can compute one honest input, or both secrets of a member."""


class LyingServerWithoutSpent(LyingServer):
    new_log = Forgetful


class LyingServerOverTerms(LyingServer):
    """The same, and attempts on one base that ask for other trainings, of some or of all."""

    def first_told(self, alone: bool) -> tuple[str, ...]:
        return self.world.honest[-1:] if alone else self.world.honest

    @rule(data=st.data(), terms=st.sampled_from((1, NOTHING)))
    def other_terms(self, data: st.DataObject, terms: int) -> None:
        """The next attempt wants something else to be learned, or nothing."""
        self.attempt += 1
        for member in self.draw_view(data) & set(self.world.honest):
            self.world.start(member, self.attempt, terms)

    @rule(data=st.data())
    def overwrite_one(self, data: st.DataObject) -> None:
        """One member alone is offered a run on another base."""
        self.world.forget(data.draw(st.sampled_from(self.world.honest), label="member"))


class LyingServerWithoutTerms(LyingServerOverTerms):
    new_log = Unbound


TestLyingServer = LyingServer.TestCase
TestLyingServer.settings = BOUNDED
TestLyingServerOverTerms = LyingServerOverTerms.TestCase
TestLyingServerOverTerms.settings = BOUNDED


# --- one scripted lie each, with the rule and without it -------------------------------------------------------------


def run_session(world: World, attempt: int, members: set[str], terms: int = 0, **views: set[str]) -> int:
    """Everybody in ``members`` through one whole session; how many honest members revealed their shares."""
    told = sorted(members & set(world.honest))
    for member in told:
        world.start(member, attempt, terms)
    for step in ("cohort", "shares", "upload", "survivors", "confirmations"):
        for member in told:
            world.step(member, views.get(step, members))
    return sum(world.machines[member].state is ClientState.DONE for member in told)


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c[0] >= 4])
@pytest.mark.parametrize("new_log", [SpentLog, Forgetful])
def test_a_retry_without_one_member_isolates_it_unless_bases_are_spent(
    configuration: tuple[int, int, int], new_log: Callable[[], SpentLog]
) -> None:
    """The sum over everybody minus the sum over everybody but one."""
    world = World(*configuration, new_log=new_log)
    everybody = set(world.roster.ids)
    assert run_session(world, 0, everybody) == len(world.honest)
    assert world.violations() == []
    assert len(world.openable_sums()) == 1
    second = run_session(world, 1, everybody - {world.honest[-1]})
    if new_log is SpentLog:
        assert second == 0
        assert world.refusals["base-spent"] == len(world.honest) - 1
        assert world.violations() == []
    elif second:
        assert any(world.honest[-1] in found for found in world.violations())
    else:
        assert configuration == (5, 2, 4) or configuration[0] - 1 < configuration[2]


def test_three_sums_that_differ_by_two_each_isolate_one_unless_bases_are_spent() -> None:
    """{1,2,3}, {3,4,5}, {1,2,4,5}: no two differ by one member, and together they give the third one away."""
    sets = [{0, 1, 2}, {2, 3, 4}, {0, 1, 3, 4}]
    for new_log, isolated in ((SpentLog, False), (Forgetful, True)):
        world = World(5, 0, 3, new_log=new_log)
        for attempt, indices in enumerate(sets):
            run_session(world, attempt, {f"site-{index}" for index in indices})
        assert bool(world.violations()) is isolated


def test_the_same_survivors_may_be_summed_again_but_three_times_at_most() -> None:
    world = World(4, 1, 3)
    everybody = set(world.roster.ids)
    for attempt in range(3):
        assert run_session(world, attempt, everybody) == 3
    assert len(world.uploads) == 9
    assert world.openable_sums() == [[1, 1, 1]]  # three times the same
    assert world.violations() == []
    assert run_session(world, 3, everybody) == 0
    assert world.refusals == {"base-spent": 3}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("new_log", [SpentLog, Unbound])
def test_one_member_that_trains_among_others_that_do_not_shows_unless_terms_are_bound(
    configuration: tuple[int, int, int], new_log: Callable[[], SpentLog]
) -> None:
    """It trains for an attempt that nobody else is offered; the next one asks all to learn nothing."""
    world = World(*configuration, new_log=new_log)
    victim, everybody = world.honest[-1], set(world.roster.ids)
    world.start(victim, 0)
    answered = run_session(world, 1, everybody, NOTHING)
    if new_log is SpentLog:
        assert world.refusals["other-terms"] == 1
        assert world.violations() == []
        assert not any(map(any, world.openable_sums()))
    else:
        assert answered == len(world.honest)
        assert world.violations() == [f"something of {victim} alone can be computed"]


@pytest.mark.parametrize("new_log", [SpentLog, Unbound])
def test_a_second_training_between_two_sums_over_the_same_survivors_shows_unless_terms_are_bound(
    new_log: Callable[[], SpentLog],
) -> None:
    """A run for one member alone takes the place of its stored update; the difference of the sums is its alone."""
    world = World(5, 1, 3, new_log=new_log)
    victim, everybody = world.honest[-1], set(world.roster.ids)
    assert run_session(world, 0, everybody) == len(world.honest)
    world.forget(victim)
    run_session(world, 1, everybody, terms=1)
    assert bool(world.violations()) is (new_log is Unbound)


@pytest.mark.parametrize("new_log", [SpentLog, Ungiven])
def test_an_update_that_was_lost_and_made_again_shows_unless_it_is_kept_back(new_log: Callable[[], SpentLog]) -> None:
    """Under the same terms, and another one all the same: other images, another device, a limit of time."""
    world = World(5, 1, 3, new_log=new_log)
    victim, everybody = world.honest[-1], set(world.roster.ids)
    assert run_session(world, 0, everybody) == len(world.honest)
    world.trained[victim] = 1
    run_session(world, 1, everybody)
    assert bool(world.violations()) is (new_log is Ungiven)


@pytest.mark.parametrize("checked", [True, False])
def test_two_survivor_sets_give_both_secrets_unless_confirmations_are_counted(
    checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the members are told that one dropped, the others that nobody did."""
    if not checked:
        monkeypatch.setattr(SurvivorSet, "enough", lambda self, count: True)
    world = World(6, 0, 3)
    everybody = set(world.roster.ids)
    for member in world.honest:
        world.start(member, 0)
    for _ in ("cohort", "shares", "upload"):
        for member in world.honest:
            world.step(member, everybody)
    dropped = "site-5"
    for _ in ("survivors", "confirmations"):
        for index, member in enumerate(world.honest):
            world.step(member, everybody if index in (4, 5) else everybody - {dropped})
    if checked:
        # Four of six confirm the smaller set: that is the threshold, and the other story stays unanswered.
        assert world.refusals["cohort-too-small"] == 2
    assert world.violations() == []  # two answers are below the threshold of four either way

    world = World(6, 0, 3)
    monkeypatch.setattr(Roster, "threshold", lambda self, n: (n // 2) if not checked else (n + self.c_max) // 2 + 1)
    for member in world.honest:
        world.start(member, 0)
    for _ in ("cohort", "shares", "upload"):
        for member in world.honest:
            world.step(member, everybody)
    for _ in ("survivors", "confirmations"):
        for index, member in enumerate(world.honest):
            world.step(member, everybody if index >= 3 else everybody - {dropped})
    assert bool(world.violations()) is not checked


@pytest.mark.parametrize("mutant", [LyingServerWithoutSpent, LyingServerWithoutTerms])
def test_the_random_search_finds_the_isolated_member_without_a_rule(mutant: type[LyingServer]) -> None:
    """The state machine above can fail: the same moves and invariant, and no log of what may be done once only."""
    search = settings(BOUNDED, max_examples=400, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(IsolatedError):
        run_state_machine_as_test(mutant, settings=search)


def test_sessions_come_to_an_end_in_the_random_search() -> None:
    """The search is worth something only if sums are opened and lies are refused in it."""
    seen: dict[str, Any] = {"sums": 0, "refusals": set()}

    class Counting(LyingServer):
        def teardown(self) -> None:
            if hasattr(self, "world"):
                seen["sums"] += bool(self.world.openable_sums())
                seen["refusals"] |= set(self.world.refusals)

    run_state_machine_as_test(Counting, settings=settings(BOUNDED, max_examples=30))
    assert seen["sums"] >= 3
    assert {"cohort-too-small", "base-spent", "survivors"} <= seen["refusals"]
    assert {"accusation", "reflected-share"} & seen["refusals"]
