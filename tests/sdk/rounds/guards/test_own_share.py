"""The share of one update in a mean: all shares add up to one, by every method and over shards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.experiment.test_sum import MANY, MEMBERS, found, make_spec, make_updates

from fedddpm import LocalPolicyOptions
from fedddpm.config import load_config
from fedddpm.errors import ConfigError, PolicyError
from fedddpm.experiment.aggregation.memory_round import Opened, aggregate
from fedddpm.rounds.guards.own_share import OwnShare, Products, own_share
from fedddpm.rounds.guards.share_guard import ShareGuard
from fedddpm.state.folder import StateFolder
from fedddpm.updates.contribution import scaled_pieces
from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.methods import TURNS, Method
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.encoder import weight_units

DIGEST = bytes(32)


def result_of(spec: RoundSpec, opened: Opened) -> RoundResult:
    parts = (
        PartResult(name, True, DIGEST, DIGEST, members, members, opened.sums[name], DIGEST, 1.0)
        for name, members in opened.survivors.items()
    )
    return RoundResult.of(spec, tuple(parts), model_hash(spec.base_manifest, opened.model))


def shares_of(spec: RoundSpec, updates: dict[str, LocalUpdate], opened: Opened, base: np.ndarray) -> list[OwnShare]:
    found_shares = []
    for member, update in updates.items():
        weight, pieces = weight_units(update.samples, spec), scaled_pieces(spec, update.sent)
        share = own_share(spec, result_of(spec, opened), member, weight, pieces, base, opened.model)
        assert share is not None
        found_shares.append(share)
    return found_shares


def summed(
    method: Method, members: Sequence[str] = MEMBERS, size: float = 1.0, **changes: object
) -> tuple[list[OwnShare], RoundSpec, dict[str, LocalUpdate], np.ndarray]:
    """Everybody's shares; the update of the first is ``size`` of the others'."""
    federation = found(tuple(members))
    spec, updates = make_spec(federation, method), make_updates(tuple(members), method)
    spec = spec.with_terms_hash(**changes)
    first = updates[members[0]]
    updates[members[0]] = replace(first, delta=first.delta * np.float32(size))
    base = np.linspace(-1, 1, len(first.delta)).astype(np.float32)
    opened = aggregate(federation, spec, updates, base, "stream", masked=False)
    return shares_of(spec, updates, opened, base), spec, updates, base


@pytest.mark.parametrize("weighting", ["equal", "by samples"])
@pytest.mark.parametrize("method", list(Method))
def test_all_shares_add_up_to_one_in_each_part_and_over_all(method: Method, weighting: str) -> None:
    shares, spec, *_ = summed(method, **({"weighting": "equal"} if weighting == "equal" else {}))
    assert sum(share.whole.share for share in shares) == pytest.approx(1, abs=1e-3)
    for part in map(spec.part, spec.summed):
        among = [share.parts[part.name].share for share in shares if part.name in share.parts]
        assert sum(among) == pytest.approx(1, abs=1e-3)
    if weighting == "equal" and method is not Method.USPLIT:
        assert all(0.05 < share.largest < 0.25 for share in shares)


def test_all_shares_add_up_over_shards() -> None:
    shares, *_ = summed(Method.UDEC, MANY)
    assert len(shares) == 130
    assert sum(share.whole.share for share in shares) == pytest.approx(1, abs=1e-3)


def test_one_that_dwarfs_the_others_is_the_sum() -> None:
    shares, *_ = summed(Method.FULL, size=50.0, weighting="equal", clip_norm=1e4)
    assert shares[0].whole.share > 0.99
    assert shares[0].whole.cosine > 0.99
    assert shares[0].largest > 0.99


def test_what_a_smaller_clip_norm_would_give_is_what_it_gives() -> None:
    shares, *_ = summed(Method.FULL, size=6.0, weighting="equal", clip_norm=1e4)
    norm = shares[0].norm
    within, *_ = summed(Method.FULL, size=6.0, weighting="equal", clip_norm=norm / 2)
    assert shares[0].largest_at(norm / 2) == pytest.approx(within[0].largest, rel=1e-3)
    assert shares[0].largest_at(2 * norm) == pytest.approx(shares[0].largest)


def test_nobody_has_a_share_in_what_was_not_opened_or_does_not_move() -> None:
    _, spec, updates, base = summed(Method.FULL)
    update = updates[MEMBERS[0]]
    pieces = scaled_pieces(spec, update.sent)
    part = PartResult("full", True, DIGEST, DIGEST, MEMBERS[1:], MEMBERS[1:], (65535, 0, 0), DIGEST, 1.0)
    for survivors, model in ((MEMBERS[1:], base + 1), (MEMBERS, base)):
        result = RoundResult.of(spec, (replace(part, cohort=survivors, survivors=survivors),), DIGEST)
        assert own_share(spec, result, MEMBERS[0], 65535, pieces, base, model) is None


def test_a_share_survives_the_state_folder() -> None:
    parts = {"encoder": Products(1.0, 0.5, 2.0), "decoder": Products(0.0, 0.0, 3.0)}
    share = OwnShare("run-1", 4, 0.75, parts, Products(1.0, 0.5, 5.0))
    assert OwnShare.from_json(json.loads(json.dumps(share.to_json().decode())).encode()) == share
    assert (share.largest, share.parts["decoder"].cosine) == (0.25, 0.0)
    assert share.whole.cosine == pytest.approx(0.5 / math.sqrt(5))
    assert str(share) == "10 % (cosine 0.22)"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"max_share": 0.33}, "just like the others.*0.33"),
        ({"max_share": 0.5, "min_cohort": 2, "allow_two_party": True}, "just like the others.*0.50"),
        ({"max_share": 0.5}, "warn_share = 0.6 is above max_share = 0.5"),
        ({"warn_share": 0.0}, "greater than 0"),
    ],
)
def test_a_policy_that_equals_cannot_meet_is_refused(policy: dict[str, object], said: str) -> None:
    settings = {"aggregator_url": "https://a", "identity": "i", "federation_root": "r", "data": "d", "state_dir": "s"}
    with pytest.raises(ConfigError, match=said):
        load_config(None, {**settings, "policy": policy})  # type: ignore[dict-item]


def test_equals_of_the_smallest_cohort_pass() -> None:
    assert LocalPolicyOptions(min_cohort=10, warn_share=0.12, max_share=0.15).max_share == 0.15
    assert LocalPolicyOptions(allow_two_party=True, min_cohort=5, warn_share=0.3, max_share=0.4).max_share == 0.4


def test_where_parts_take_turns_a_share_holds_for_its_part(tmp_path: Path) -> None:
    """What was summed in the last round says nothing of the part whose turn it is now."""
    federation, updates = found(MEMBERS), make_updates(MEMBERS, Method.TURN)
    small = {name: replace(update, delta=update.delta * np.float32(0.01)) for name, update in updates.items()}
    updates = {**small, "site-1": replace(updates["site-1"], samples=100)}
    base = np.zeros(len(updates["site-1"].delta), np.float32)
    first = make_spec(federation, Method.TURN)
    second = replace(first, turn=TURNS[1])
    with StateFolder(tmp_path / "state", b"r" * 32, "site-1") as state:
        guard = ShareGuard(state, "site-1", LocalPolicyOptions(max_share=0.6), lambda _: None)
        opened = aggregate(federation, first, updates, base, "stream", masked=False)
        guard.measure(first, result_of(first, opened), updates["site-1"], base, opened.model)
        guard.require_small(second)  # another part: nothing is known of it
        with pytest.raises(PolicyError, match="max_share"):
            guard.require_small(first)
