"""Real institutions in two shards: each finds its own, and all end with one model."""

from __future__ import annotations

from tests.e2e.conftest import NewFederation

from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.shards import draw
from fedddpm_protocol.wire.phases import Phase


def test_two_shards_train_one_model(new_federation: NewFederation) -> None:
    fed = new_federation("abcdef")
    fed.sign_roster("shard", "--size", "3")
    fed.install_roster()
    fed.start(Method.UDEC, rounds=2, bits=16, first_bits=24)
    fed.join_in()
    fed.end()
    with fed.context.database.read() as db:
        shards = draw(fed.context.newest_roster(db))
    assert [len(shard) for shard in shards] == [3, 3]
    for round_ in (0, 1):
        opened = {line.part: line for line in fed.lines(round_) if line.phase == Phase.DONE}
        assert {name: line.survivors for name, line in opened.items()} == {
            "decoder.0": shards[0],
            "decoder.1": shards[1],
        }
        for member in fed.members:  # how the mean was made is told as if all stood in one sum
            (entry,) = [entry for entry in fed.site_rounds(member) if entry["round"] == round_]
            assert entry["took_part"]
            assert sorted(entry["survivors"]) == list(fed.members)
    fed.check_models()
