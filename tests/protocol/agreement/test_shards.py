"""More members than one sum holds: who is drawn into which shard, what a roster must allow for, and the joint mean."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.support.sessions import SERVER, make_roster
from tests.protocol.support.specs import make_spec
from tests.protocol.support.sums import opened_part, summed

from fedddpm_protocol.agreement.documents import open_spec, sign_spec
from fedddpm_protocol.agreement.methods import Method, part_of, session_name, sessions_by_part
from fedddpm_protocol.agreement.roster import SHARD_RISK_BITS, Member, Roster, Sharding
from fedddpm_protocol.agreement.shards import draw, members_of, session_of, sessions_of, shard_of
from fedddpm_protocol.encoding.decoder import derive_model
from fedddpm_protocol.errors import MalformedError, SpecError, UnknownMemberError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import session_plan, verify_join
from fedddpm_protocol.wire.messages import Join, JoinBody

SEED = bytes(range(32))


def sharded(members: int, size: int, corrupt: int = 0, seed: bytes = SEED, **changes: Any) -> Roster:
    rules = Sharding(size, corrupt, seed, "a test")
    c_max = changes.pop("c_max", rules.needed_c_max(members))
    ids = tuple(Member(f"m{index:05}", (index + 1).to_bytes(32, "big")) for index in range(members))
    return Roster("test", 1, c_max, max(3, c_max + 2), SERVER.public_key, ids, sharding=(rules,), **changes)


@given(members=st.integers(3, 400), size=st.integers(3, 128))
@settings(max_examples=40, deadline=None)
def test_everybody_is_in_one_shard_and_shards_are_equal(members: int, size: int) -> None:
    roster = sharded(members, size)
    shards = draw(roster)
    assert sorted(member for shard in shards for member in shard) == list(roster.ids)
    lengths = [len(shard) for shard in shards]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(shards) == -(-members // size)
    assert all(list(shard) == sorted(shard) for shard in shards)
    assert all(roster.ids[index] in shards[shard_of(roster, roster.ids[index])] for index in range(0, members, 17))


def test_the_draw_follows_from_seed_and_members_alone() -> None:
    roster = sharded(40, 10)
    other_rules = replace(roster, version=7, federation="other", releases=(), operators=(Member("op", b"o" * 32),))
    assert draw(other_rules) == draw(roster)
    assert draw(sharded(40, 10, seed=bytes(32))) != draw(roster)
    assert [shard[:2] for shard in draw(roster)] == [  # recorded: another order would part old and new programs
        ("m00002", "m00010"),
        ("m00003", "m00009"),
        ("m00001", "m00004"),
        ("m00000", "m00007"),
    ]


def test_a_thousand_members_in_eight_shards() -> None:
    shards = draw(sharded(1000, 128, corrupt=100))
    assert [len(shard) for shard in shards] == [125] * 8


def test_known_bound_on_conspirators_in_a_shard() -> None:
    rules = Sharding(128, 1000, SEED, "a test")
    assert rules.needed_c_max(10_000) == 44
    roster = sharded(10_000, 128, corrupt=1000)
    assert roster.threshold(128) == 87
    with pytest.raises(ValueError, match="need a c_max of 44, not 43"):
        replace(roster, c_max=43)


@pytest.mark.parametrize(("members", "size", "corrupt"), [(12, 4, 3), (60, 20, 6), (200, 100, 40), (129, 128, 1)])
def test_the_bound_is_the_exact_tail(members: int, size: int, corrupt: int) -> None:
    rules = Sharding(size, corrupt, SEED, "a test")
    sizes, c = rules.sizes(members), rules.needed_c_max(members)

    def risk_times_draws(c_max: int) -> int:
        largest = max(sizes)
        above = range(c_max + 1, min(largest, corrupt) + 1)
        return len(sizes) * sum(comb(corrupt, k) * comb(members - corrupt, largest - k) for k in above)

    allowed = comb(members, max(sizes))
    assert risk_times_draws(c) << SHARD_RISK_BITS <= allowed
    assert c == 0 or risk_times_draws(c - 1) << SHARD_RISK_BITS > allowed


BAD_RULES = {
    "too-large": {"size": 129},
    "too-small": {"size": 2},
    "short-seed": {"seed": bytes(31)},
    "no-source": {"source": ""},
}


@pytest.mark.parametrize("changes", BAD_RULES.values(), ids=BAD_RULES)
def test_rules_shards_cannot_break(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(Sharding(10, 0, SEED, "a test"), **changes)


def test_rosters_that_cannot_be() -> None:
    roster = sharded(40, 10)
    for changes in (
        {"sharding": roster.sharding * 2},
        {"sharding": (replace(roster.sharding[0], corrupt=41),)},
        {"operators": (Member(roster.ids[0], b"k" * 32),)},
        {"operators": (Member("op", roster.members[0].public_key),)},
        {"operators": (Member("op", SERVER.public_key),)},
        {"operators": (Member("z", b"k" * 32), Member("a", b"j" * 32))},
        {"operators": (Member("a", b"k" * 32), Member("b", b"k" * 32))},
    ):
        with pytest.raises(ValueError):
            replace(roster, **changes)
    with pytest.raises(ValueError, match="they need shards"):
        replace(sharded(129, 128), sharding=())


def test_later_fields_leave_older_bytes_alone() -> None:
    old = make_roster(5, 1)
    body = canonical.encode(old)
    assert len(canonical.unlp(body)) == 7
    with_operator = replace(old, operators=(Member("op", b"k" * 32),))
    assert len(canonical.unlp(canonical.encode(with_operator))) == 8
    sharding = replace(old, sharding=(Sharding(5, 0, SEED, "a test"),))
    assert len(canonical.unlp(canonical.encode(sharding))) == 9
    for roster in (old, with_operator, sharding):
        assert canonical.decode(Roster, canonical.encode(roster)) == roster
    with pytest.raises(MalformedError):  # a second form of the same roster
        canonical.decode(Roster, body + canonical.lp(b""))
    with pytest.raises(MalformedError):
        canonical.decode(Roster, canonical.lp(*canonical.unlp(body)[:6]))
    with pytest.raises(UnknownMemberError):
        with_operator.operator_key("site-0")
    assert with_operator.operator_key("op") == b"k" * 32


def test_sessions_are_named_by_part_and_shard() -> None:
    roster = sharded(12, 4)
    assert sessions_of(Method.UDEC, roster) == ("decoder.0", "decoder.1", "decoder.2")
    assert len(sessions_of(Method.USPLIT, roster)) == 9
    assert sessions_of(Method.UDEC, make_roster(5, 1)) == ("decoder",)
    assert part_of(session_name("bottleneck-decoder", 11)) == "bottleneck-decoder"
    by_part = sessions_by_part(["decoder.10", "decoder.2", "encoder"])
    assert by_part == {"decoder": ("decoder.2", "decoder.10"), "encoder": ("encoder",)}
    for wrong in ("decoder", "decoder.3", "decoder.-1", "decoder.00", "encoder.0"):
        with pytest.raises(SpecError):
            members_of(Method.UDEC, roster, wrong)


@pytest.mark.parametrize("method", [*Method])
def test_every_shard_reports_every_part_among_its_own(method: Method) -> None:
    roster = sharded(24, 8)
    spec = make_spec(roster, method, largest_cohort=8)
    reported: Counter[str] = Counter()
    for session in sessions_of(method, roster, spec.turn):
        plan = session_plan(spec, roster, session)
        assert plan.part == part_of(session)
        assert set(plan.reporters) <= set(members_of(method, roster, session, turn=spec.turn))
        assert all(session_of(roster, plan.part, member) == session for member in plan.reporters)
        reported.update(dict.fromkeys(plan.reporters, len(method.sessions[plan.part])))
    if method is Method.USPLIT:  # the uploads of a pair make one network, and pairs stay within a shard
        assert sum(reported.values()) == 3 * 24 / 2
    else:
        assert set(reported) == set(roster.ids)


def test_a_member_of_another_shard_cannot_join() -> None:
    identities = {f"site-{index}": SigningKey((b"%d" % index * 32)[:32]) for index in range(9)}
    members = tuple(Member(name, key.public_key) for name, key in sorted(identities.items()))
    roster = Roster("test", 1, 0, 3, SERVER.public_key, members, sharding=(Sharding(3, 0, SEED, "a test"),))
    spec = make_spec(roster)
    outsider = draw(roster)[1][0]
    body = canonical.encode(JoinBody(spec.hash, outsider, 1, b"\x09" + bytes(31), b"\x08" * 32, *[bytes(32)] * 2, ()))
    join = Join(body=body, signature=identities[outsider].sign("join", body))
    with pytest.raises(UnknownMemberError, match="does not report"):
        verify_join(session_plan(spec, roster, "full.0"), roster, join)


@pytest.mark.parametrize("bits", [32, 16])
def test_shards_give_the_mean_over_everybody(bits: int) -> None:
    """Shards of different sizes and weights, one member gone: the exact means of the shards, weighted."""
    size, dice = 3000, np.random.default_rng(3)
    spec = make_spec(bits=bits, coordinates=size)
    base = dice.normal(0, 1, size).astype(np.float32)
    shards, total, weight = {}, np.zeros(size), 0
    for shard, count in enumerate((5, 3, 4)):
        deltas = [dice.normal(0, 0.01, size).astype(np.float32) for _ in range(count)]
        weights = [int(w) for w in dice.integers(20_000, 65_535, count)]
        words = summed(spec, deltas, weights, count + (shard == 1))
        shards[f"full.{shard}"] = opened_part(spec, words, (sum(weights), 0, 0), count, count + (shard == 1))
        total += sum(w * delta.astype(float) for w, delta in zip(weights, deltas, strict=True))
        weight += sum(weights)
    following = derive_model(spec, base, shards)
    model, norms = following.base, following.norms
    error = model - base - total / weight
    assert np.abs(error).max() < 1e-4
    assert list(norms) == ["full.0", "full.1", "full.2"]
    assert derive_model(spec, base, dict(reversed(shards.items()))).base.tobytes() == model.tobytes()
    one = derive_model(spec, base, {"full.0": shards["full.0"]}).base
    assert one.tobytes() == derive_model(spec, base, {"full": shards["full.0"]}).base.tobytes()


# --- further draws ----------------------------------------------------------------------------------------------------


def redrawn(members: int, size: int, redraws: int, corrupt: int = 0) -> Roster:
    roster = sharded(members, size, corrupt, c_max=members // 3)
    return replace(roster, sharding=(replace(roster.sharding[0], redraws=redraws),))


def test_each_draw_is_another_one_and_all_follow_from_the_seed() -> None:
    roster = redrawn(40, 10, 3)
    draws = [draw(roster, number) for number in range(4)]
    assert draws[0] == draw(sharded(40, 10)), "the first one is as without further ones"
    assert len(set(draws)) == 4
    assert all(sorted(member for shard in one for member in shard) == list(roster.ids) for one in draws)
    assert [hashlib.sha256(repr(one).encode()).hexdigest()[:12] for one in draws] == [  # recorded, as above
        "ee5c784abe80",
        "fc68220d4dd0",
        "df52f29472c2",
        "61ccf3fa771b",
    ]


def test_a_roster_has_the_draws_that_the_root_allowed() -> None:
    for roster, number in ((redrawn(40, 10, 3), 4), (redrawn(40, 10, 3), -1), (make_roster(5, 1), 1)):
        with pytest.raises(SpecError, match=f"has no draw {number}"):
            draw(roster, number)
    assert draw(redrawn(40, 10, 16), 16)
    for wrong in (-1, 17):
        with pytest.raises(ValueError, match=f"{wrong} further draws are outside 0 to 16"):
            replace(Sharding(10, 0, SEED, "a test"), redraws=wrong)


def test_places_follow_the_draw_of_the_specification() -> None:
    roster = redrawn(12, 4, 5)
    spec = make_spec(roster, Method.UDEC, draw=3)
    shards = draw(roster, 3)
    for shard, members in enumerate(shards):
        plan = session_plan(spec, roster, f"decoder.{shard}")
        assert plan.reporters == members
        assert all(session_of(roster, "decoder", member, 3) == f"decoder.{shard}" for member in members)
    assert session_plan(make_spec(roster, Method.UDEC), roster, "decoder.0").reporters != shards[0]


def test_the_bound_holds_over_all_draws_together() -> None:
    tight = Sharding(128, 1000, SEED, "a test")
    assert [replace(tight, redraws=count).needed_c_max(10_000) for count in (0, 3, 16)] == [44, 45, 46]
    with pytest.raises(ValueError, match="need a c_max of 46, not 44"):
        replace(sharded(10_000, 128, 1000), sharding=(replace(tight, redraws=16),))


def test_counts_are_not_hidden_where_groups_are_drawn_anew() -> None:
    """Seven sums over groups of six in two shards have one solution: everybody's count."""
    roster = redrawn(6, 3, 16)
    rows = [[member in shard for member in roster.ids] for number in range(7) for shard in draw(roster, number)]
    assert np.linalg.matrix_rank(np.array(rows, float)) == 6
    for weighting, rules in (("hidden", 0), ("equal", 16)):
        allowed = redrawn(6, 3, rules)
        open_spec(sign_spec(make_spec(allowed, Method.UDEC, weighting=weighting, largest_cohort=3), SERVER), allowed)
    hidden = make_spec(roster, Method.UDEC, weighting="hidden", largest_cohort=3)
    with pytest.raises(SpecError, match="reveal them to whoever adds and subtracts them"):
        open_spec(sign_spec(hidden, SERVER), roster)


def test_rosters_without_further_draws_keep_their_bytes() -> None:
    rules = Sharding(20, 6, SEED, "a test")
    assert len(canonical.unlp(canonical.encode(rules))) == 4
    again = canonical.decode(Sharding, canonical.encode(replace(rules, redraws=5)))
    assert again.redraws == 5
