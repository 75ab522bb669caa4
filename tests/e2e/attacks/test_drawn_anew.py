"""One of nine institutions in three shards sends an update that is not clipped, round after round; all are processes.

The round loses its shard each time, the next one is in other shards, and soon nobody but the spoiler is in all that
were spoiled; it is named when chance hardly explains that. The others finish every round.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.attacks.test_spoilers import UNCLIPPED, began, named_in_audit, others, page
from tests.e2e.conftest import NewFederation

from fedddpm_protocol.agreement.shards import draw
from fedddpm_protocol.wire.phases import Phase

ROUNDS, NEEDED = 7, 6  # nine honest members are in one shard of three six times running with a chance of 1.2 %


def test_a_spoiler_in_shards_is_cornered(new_federation: NewFederation, tmp_path: Path) -> None:
    fed = new_federation("abcdefghi")
    fed.sign_roster("shard", "--size", "3", "--redraws", "8", "--seed", "03" * 32, "--source", "a test")
    fed.install_roster()
    fed.begin(rounds=ROUNDS, clip_norm=1.0, bits=32, first_bits=32, weighting="equal")
    spoiler = fed.members[3]
    honest = others(fed.members, spoiler)
    began(fed, spoiler, UNCLIPPED, tmp_path / "spoiler")
    fed.end(*honest, timeout_s=240)
    fed.check_models(members=honest)
    with fed.context.database.read() as db:
        roster = fed.context.newest_roster(db)
    left = set(fed.members)
    for round_ in range(ROUNDS):
        shards = {f"decoder.{number}": shard for number, shard in enumerate(draw(roster, round_))}
        phases = {line.part: line.phase for line in fed.lines(round_)}
        assert phases == {name: Phase.FAILED if spoiler in shard else Phase.DONE for name, shard in shards.items()}, (
            f"round {round_}"
        )
        left &= next(set(shard) for shard in shards.values() if spoiler in shard)
    assert left == {spoiler}
    (named,) = named_in_audit(fed)
    assert (named["member"], named["round"]) == (spoiler, NEEDED - 1)
    for shown in (page(fed), fed.aggregator("rounds", "--data", fed.data)):
        assert f"in all of them: {spoiler}, 1 of 9 members" in shown
        assert f"Call {spoiler}" in shown
        assert not any(f"Call {member}" in shown for member in honest)
    fed.aggregator("verify", "--data", fed.data)
