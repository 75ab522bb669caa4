"""Minutes of random SIGKILLs: every round that ends is exact, and the run comes to its end. `make soak` runs it."""

from __future__ import annotations

import os
import random
import time

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation

from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.encoding.encoder import loss_units
from fedddpm_protocol.wire.phases import Phase

ROUNDS = int(os.environ.get("FEDDDPM_SOAK_ROUNDS", "20"))
SECONDS = float(os.environ.get("FEDDDPM_SOAK_SECONDS", "300"))  # of killing; then the run may end in peace
PAUSE_S = (1.0, 6.0)  # between two kills


def kill_someone(fed: Federation, dice: random.Random) -> str:
    """SIGKILL a random process that still runs, and start it again with the same command."""
    running = [name for name, process in fed.processes.items() if process.poll() is None]
    name = dice.choice(running)
    fed.kill(name)
    time.sleep(dice.uniform(0, 1))
    if name == "aggregator":
        fed.serve()
    else:
        fed.join_in(name)
    return name


def check_round(fed: Federation, result: RoundResult) -> bool:
    """The opened weights are those of the survivors, and the losses theirs; False if one wrote nothing down yet.

    A process killed between taking a result and writing its line leaves no line; then only the weights are checked.
    """
    (part,) = result.parts
    sizes = {member: 12 + number for number, member in enumerate(fed.members)}
    counts = {member: size - round(size / 10) for member, size in sizes.items()}  # without the images held out
    assert part.sums[0] == sum(counts[member] for member in part.survivors), f"round {result.round}"
    lines = {member: {entry["round"]: entry for entry in fed.site_rounds(member)} for member in part.survivors}
    if any(max(entries, default=-1) < result.round for entries in lines.values()):
        return False
    own = [entries[result.round] for entries in lines.values() if result.round in entries]
    for entry in own:
        assert entry["spec_hash"] == result.spec_hash.hex()
        assert entry["took_part"]
    if len(own) == len(part.survivors):
        before, after = (sum(loss_units(entry[name]) for entry in own) for name in ("loss_before", "loss_after"))
        assert part.sums[1:] == (before, after), f"round {result.round}"
    return True


@pytest.mark.soak
def test_random_kills(new_installed_federation: NewFederation, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FEDDDPM_SOAK_SEED", str(random.SystemRandom().randrange(2**32))))
    dice, kills, checked = random.Random(seed), [], 0
    with capsys.disabled():
        print(f"\nsoak with FEDDDPM_SOAK_SEED={seed}")
    fed = new_installed_federation("abcd", c_max=1)
    durations = {"shares_s": 10, "masked_s": 20, "confirm_s": 10, "unmask_s": 20, "join_s": 60}
    fed.start(rounds=ROUNDS, epochs=4, weighting="hidden", **durations)
    fed.join_in()
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends and fed.state().status != "finished":
        time.sleep(dice.uniform(*PAUSE_S))
        kills.append(kill_someone(fed, dice))
        fed.require_no_trace()
        results = fed.results()
        while checked < len(results) and check_round(fed, results[checked]):
            checked += 1
    fed.end(timeout_s=300)
    results = fed.results()
    assert [result.round for result in results] == list(range(ROUNDS))
    for result in results:
        check_round(fed, result)
    fed.check_models()
    attempts = len(fed.lines())
    with capsys.disabled():
        print(f"{ROUNDS} rounds in {attempts} attempts, {len(kills)} kills, {kills.count('aggregator')} of the server")
    assert all(line.phase in (Phase.DONE, Phase.FAILED) for line in fed.lines())
