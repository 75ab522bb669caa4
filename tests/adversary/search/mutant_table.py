"""Which weakenings there are: those in which the search finds something, and those that give nothing away, with why."""

from __future__ import annotations

from collections.abc import Callable

from tests.adversary.search import blame_mutants as b
from tests.adversary.search import mutants as m
from tests.adversary.search.mutants import Mutant, Weaken, around, dealt_for, hu3, nothing, remembers, seeds, swap
from tests.adversary.search.mutants import threshold as t

P, L, S = m.Participant, m.SpentLog, m.SurvivorSet


def enough(counted: Callable[[S, int], bool]) -> Weaken:
    return swap(S, "enough", counted)


GUILTY = "without the convicted"
ONE, WIDE, FLOORS, RETRY, FIVE = "one session", "one session of five", "floors", "a retry", "a retry of five"
NO_CHECK = swap(P, "_check_allowed", nothing)
ANSWERS = tuple(swap(module, "check_answers", nothing) for module in (m.spent_module, m.participant_module))
UNLOCKED = around(P, "__init__", m._unlocked_by_release)
ANY_RELEASE = around(m.spent_module, "check_spent", m._release_unchecked)

FOUND: dict[str, Mutant] = {
    "the threshold is one less": Mutant((t(lambda n, c: (n + c) // 2),), ONE),
    "the threshold is half of the cohort": Mutant((t(lambda n, c: n // 2),), ONE),
    "the threshold does not know c_max": Mutant((t(lambda n, c: n // 2 + 1),), ONE),
    "the threshold is c_max + 1": Mutant((t(lambda n, c: c + 1),), ONE),
    "the threshold is 1": Mutant((t(lambda n, c: 1),), ONE),
    "shares are dealt for one less": Mutant((dealt_for(lambda t: t - 1),), RETRY),
    "shares are dealt for two less": Mutant((dealt_for(lambda t: t - 2),), ONE),
    "each share is the secret": Mutant((dealt_for(lambda t: 1),), ONE),
    "confirmations are not verified": Mutant((m.CONFIRM_UNSIGNED,), WIDE),
    "confirmations are not counted": Mutant((enough(lambda self, count: True),), WIDE),
    "one confirmation less is enough": Mutant(
        (enough(lambda self, count: count >= self.sharing.cohort.threshold - 1),), RETRY
    ),
    "one confirmation is enough": Mutant((enough(lambda self, count: count >= 1),), WIDE),
    "confirmations count twice": Mutant((around(P, "receive_confirmations", m._counting_messages),), WIDE),
    "hU3 does not name the survivors": Mutant((hu3(m._session, m._sharers),), WIDE),
    "hU3 is the same for everybody": Mutant((hu3(),), WIDE),
    "hU3 is the names only": Mutant((hu3(m._names),), "given up before, to five"),
    "a member confirms a second set": Mutant((m._confirms_again,), WIDE),
    "an answer tells both secrets of all": Mutant((m.tells(lambda s: ("self_mask", "mask_sk")),), ONE),
    "an answer tells both secrets of the dropped": Mutant(
        (m.tells(lambda s: ("self_mask",) if s else ("self_mask", "mask_sk")),), ONE
    ),
    "an answer tells both secrets of survivors": Mutant(
        (m.tells(lambda s: ("self_mask", "mask_sk") if s else ("mask_sk",)),), ONE
    ),
    "an answer tells the self masks of the dropped": Mutant((m.tells(lambda s: ("self_mask",)),), RETRY),
    "the floor is ignored": Mutant(m.NO_FLOOR, FLOORS),
    "the floor does not hold for survivors": Mutant((m.NO_FLOOR[2],), FLOORS),
    "n_min is ignored": Mutant((m.QUORUM_IS_T, *m.NO_FLOOR), FLOORS),
    "sharers may be fewer than the quorum": Mutant((m.SHARERS,), "sharers of six"),
    "any set of sharers is enough": Mutant((m.SHARERS, m.NO_FLOOR[1]), ONE),
    "a roster may have n_min below c_max + 2": Mutant((m._lawless,), "a roster of few"),
    "SPENT is not written": Mutant((swap(L, "_keep", nothing),), RETRY),
    "SPENT is not read when a machine starts": Mutant((m.UNREAD,), "a retry of four"),
    "SPENT is neither read nor checked": Mutant((m.UNREAD, m.UNCHECKED), RETRY),
    "SPENT is written after the answer": Mutant((around(P, "receive_confirmations", m._answers_first),), RETRY),
    "SPENT is lost at a restart": Mutant((around(L, "__init__", lambda init: lambda self, _=(): init(self)),), RETRY),
    "SPENT has one place for all parts": Mutant((m.keeps_one(lambda base, part: base),), "parts in turn"),
    "SPENT has one place for all bases": Mutant((m.keeps_one(lambda base, part: part),), "bases in turn"),
    "fewer of the recorded survivors may come": Mutant(remembers(lambda old, new: set(new) <= set(old)), RETRY),
    "more than the recorded survivors may come": Mutant(remembers(lambda old, new: set(new) >= set(old)), RETRY),
    "as many as were recorded may come": Mutant(remembers(lambda old, new: len(new) == len(old)), RETRY),
    "some of the recorded survivors may come": Mutant(remembers(lambda old, new: bool(set(new) & set(old))), RETRY),
    "SPENT holds for the cohort only": Mutant((NO_CHECK, m.UNCHECKED), RETRY),
    "answers are not limited": Mutant(ANSWERS, "again and again"),
    "a release is never used up": Mutant((around(L, "_keep", m._never_used),), "there and back"),
    "a release frees for any survivors": Mutant((UNLOCKED, ANY_RELEASE), "a release"),
    "a machine lets a release free for any survivors": Mutant((UNLOCKED,), "a release"),
    "a release frees another part": Mutant(
        (m.any_release("base_model_hash", "old_u3"), ANY_RELEASE), "a release of another part"
    ),
    "a release frees another base": Mutant((m.any_release("part", "old_u3"), ANY_RELEASE), "a release of another base"),
    "a release does not ask what was summed": Mutant(
        (m.any_release("part", "base_model_hash"), ANY_RELEASE), "a release"
    ),
    "JOINs are not verified": Mutant((m.JOIN_UNSIGNED,), FIVE),
    "JOINs and deals are not verified": Mutant((m.JOIN_AND_DEAL_UNSIGNED,), ONE),
    "a key may stand twice, and names are in no seed": Mutant((m.KEYS_TWICE, *seeds("ids")), ONE),
    "session keys are the same every time": Mutant((m.SAME_KEYS,), "the next round"),
    "uploads have no self mask": Mutant((m.masks(lambda streams: streams[1:]),), ONE),
    "uploads have no pair masks": Mutant((m.masks(lambda streams: streams[:1]),), ONE),
    "uploads have one pair mask": Mutant((m.masks(lambda streams: streams[:2]),), ONE),
    "a base is not bound to its terms": Mutant((swap(L, "agree", nothing),), "lone trainings"),
    "a base is not bound to its update": Mutant((swap(L, "give", nothing),), "second trainings"),
    "evidence is not checked": Mutant((b.BELIEVED,), GUILTY),
    "who contradicts a dealer is believed": Mutant((b.CONTRADICTED,), GUILTY),
    "accusations are not verified": Mutant((b.ACCUSER_UNSIGNED,), GUILTY),
    "one accuser is enough": Mutant((b.ONE_ACCUSER,), GUILTY),
    "accusers are counted by messages": Mutant((b.BY_MESSAGES,), GUILTY),
    "an accusation is over any deal": Mutant((b.OF_ANY_DEAL,), GUILTY),
    "whose answer it is is not verified": Mutant((b.ANSWER_UNSIGNED,), GUILTY),
    "an answer is over any deal of U2": Mutant((b.OVER_ANY_DEAL,), GUILTY),
    "an answer is over any U2 and U3": Mutant((b.OVER_ANYTHING,), GUILTY),
    "hU2 does not name the deals": Mutant((b.deals_not_in_hu2,), GUILTY),
    "shares that nobody was dealt convict": Mutant((b.UNDEALT,), GUILTY),
    "less than t shares convict": Mutant((b.OF_FEW,), GUILTY),
    "shares are held against commitments neither at first nor at last": Mutant(
        (b.UNCOMMITTED, b.revealed_unchecked), GUILTY
    ),
    "a conviction frees for any survivors": Mutant((b.frees_for_anybody,), GUILTY),
    "a conviction frees for as many others": Mutant((b.lets_as_many_others,), GUILTY),
    "the machine of an earlier attempt goes on": Mutant((), "two attempts at once"),
}

COMMIT = "the log refuses it as well: commit checks the record again"
NOTHING_FOUND: dict[str, Mutant] = {
    "enough is counted from the survivors": Mutant(
        (enough(lambda self, count: count >= self.sharing.cohort.roster.threshold(len(self.ids))),),
        why="survivors are at least t of the cohort, and their shares open nothing below t",
    ),
    "confirmations of those who dropped count": Mutant(
        (swap(S, "verify_confirmation", m._of_anybody),),
        why="an honest member confirms only a set that it is in, and t allows for all accomplices in any case",
    ),
    "hU3 does not name the uploads": Mutant(
        (hu3(m._session, m._sharers, m._names),), why="one member uploads once; digests make a changed upload evident"
    ),
    "hU3 does not name U2": Mutant(
        (hu3(m._session, m._names, m._digests),), why="U2 is in every mask, so other views of it do not cancel"
    ),
    "hU3 does not name the session": Mutant((hu3(m._sharers, m._names, m._digests),), why="hU2 names it"),
    "an answer tells the mask key of survivors": Mutant(
        (m.tells(lambda s: ("mask_sk",)),), why="then self masks stay: the sum does not open"
    ),
    "the floor does not hold for the cohort": Mutant(
        (m.NO_FLOOR[0],), why="it holds for survivors, who are in the cohort"
    ),
    "the floor does not hold for sharers": Mutant(
        (m.NO_FLOOR[1],), why="the quorum t does, and fewer than t members are left beside those who answer"
    ),
    "n_min is not in the quorum": Mutant((m.QUORUM_IS_T,), why="it is in the institution's floor"),
    "survivors may be fewer than the quorum": Mutant(
        (swap(m.Sharing, "survivors", m._any_survivors),), why="t of them have to confirm, and the floor holds n_min"
    ),
    "SPENT is not checked when it is written": Mutant((m.UNCHECKED,), why="the machine refuses before"),
    "SPENT does not hold for survivors": Mutant((NO_CHECK,), why=COMMIT),
    "answers are counted by the log only": Mutant((ANSWERS[1],), why=COMMIT),
    "the log does not look at releases": Mutant((ANY_RELEASE,), why="the machine holds to the released survivors"),
    "the own JOIN is not looked for": Mutant(
        (around(P, "receive_cohort", m._any_own_join),),
        why="others mask with the key in the JOIN that they see, so nothing cancels: the check names a second client",
    ),
    "deals are not verified": Mutant((m.DEAL_UNSIGNED,), why="only who holds the channel key of a JOIN can seal them"),
    "a key may stand twice": Mutant((m.KEYS_TWICE,), why="names are in the seeds of pair masks"),
    "names are in no seed": Mutant(seeds("ids"), why="no key stands twice in a cohort"),
    "JOINs of other offers are taken": Mutant(
        (swap(m.cohort_module, "verify_join", m._any_spec),),
        why="their machines are not in this session: they share nothing",
    ),
    "hU2 is in no seed": Mutant(seeds("hu2"), why="hU3 names U2, and at least t members confirm one hU3"),
    "the session is in no seed": Mutant(seeds("sid"), why="hU2 names it, and session keys are made anew"),
    "neither session nor hU2 is in a seed": Mutant(seeds("sid", "hu2"), why="session keys are made anew"),
    "hU2 is neither in seeds nor in hU3": Mutant(
        (*seeds("hu2"), hu3(m._session, m._names, m._digests)),
        why="who confirms has all of U3 in its U2, and the quorum",
    ),
}
BLAMELESS: dict[str, Mutant] = {
    "the own DEAL is not looked for": Mutant(
        (b.OWN_DEAL,), why="without it a member is not in U2 and cannot upload, and another one needs its signature"
    ),
    "the own DEAL is not looked for, and deals are not verified": Mutant(
        (b.OWN_DEAL, m.DEAL_UNSIGNED),
        why="a deal holds nothing that a mask is made of; the evidence against its dealer needs the signature still",
    ),
    "shares are not held against commitments before masking": Mutant(
        (b.UNCOMMITTED,), why="the machine holds them against these before it reveals them, and stops"
    ),
    "revealed shares are not held against commitments": Mutant(
        (b.revealed_unchecked,), why="they were before masking; the second look is for memory that goes bad"
    ),
    "a conviction counts on every base": Mutant(
        (b.counts_on_every_base,),
        why="who is convicted stands with the adversary, which knows what its own members put in on any base",
    ),
}
NOTHING_FOUND |= BLAMELESS
MUTANTS = FOUND | NOTHING_FOUND
