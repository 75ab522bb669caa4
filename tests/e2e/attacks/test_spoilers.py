"""One of four institutions spoils what it can; each is a process of its own. The honest ones finish their rounds.

Silence at every phase and a second content are named, NaN ends at the spoiler itself. Of an update that is not
clipped nobody can tell whose it was: the round is held, and what is left to do is said in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import httpx
from sqlalchemy import select
from tests.aggregator.dashboard.pages import text_of
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, sitecustomize, wait_until

from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.service.conduct import NAMED
from fedddpm_protocol.wire.phases import Phase

PLAN = ("shares", "masked", "confirm", "unmask", "second", "nan")  # in which round; with NaN it ends and never joins
QUICK: dict[str, object] = {"join_s": 15, "shares_s": 5, "masked_s": 6, "confirm_s": 5}

SPOILER = f"""
import dataclasses
import fedddpm.rounds.round_update as updates
from fedddpm.rounds.session import SessionDriver
from fedddpm.transport.problems import ProblemError

PLAN = {PLAN!r}


def spoils(spec, how):
    return PLAN[spec.round] == how


def silent(name, how):
    honest = getattr(SessionDriver, name)

    def step(self):
        # Where an honest one is late, the answers of all who are left are needed: this test is not of that.
        needed = how == "unmask" and len(self._received.survivors) < 4
        return self.leave("silent") if spoils(self._spec, how) and not needed else honest(self)

    setattr(SessionDriver, name, step)


def upload(self, honest=SessionDriver._upload):
    honest(self)
    if spoils(self._spec, "second"):
        try:
            self._api.put_chunk(self._part.weights.name, 0, bytes(12), 0)
        except ProblemError as problem:
            print("refused:", problem.happened)


def train(model, spec, *rest, honest=updates.train_update, **others):
    update = honest(model, spec, *rest, **others)
    return dataclasses.replace(update, delta=update.delta * float("nan")) if spoils(spec, "nan") else update


SessionDriver._upload = upload
updates.train_update = train
for name, how in (("_send_shares", "shares"), ("_upload", "masked"), ("_confirm", "confirm"), ("_unmask", "unmask")):
    silent(name, how)
"""

UNCLIPPED = """
import numpy as np
import fedddpm.updates.contribution as contribution


class Magnifying(contribution.ValuesEncoder):
    def chunk(self, index):
        words = super().chunk(index)
        return words * words.dtype.type(1000)


contribution.ValuesEncoder = Magnifying
"""


def named_in_audit(fed: Federation) -> list[dict[str, object]]:
    with fed.context.database.read() as db:
        rows = db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED).order_by(AuditRow.seq))
        return [json.loads(row) for row in rows]


def page(fed: Federation) -> str:
    return text_of(httpx.get(fed.url, trust_env=False, timeout=30).text)


def summed(fed: Federation, round_: int) -> set[str]:
    (line,) = (line for line in fed.lines(round_) if line.phase == Phase.DONE)
    return set(line.survivors)


def began(fed: Federation, spoiler: str, code: str, folder: Path) -> None:
    """Four processes, one of which runs ``code`` before everything else."""
    fed.serve()
    fed.join_in(spoiler, environment=sitecustomize(folder, code))
    fed.join_in(*others(fed.members, spoiler))


def others(members: Iterable[str], spoiler: str) -> list[str]:
    return [member for member in members if member != spoiler]


def test_silence_a_second_content_and_nan(new_federation: NewFederation, tmp_path: Path) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.begin(rounds=len(PLAN), **QUICK)
    spoiler = fed.members[3]
    honest = others(fed.members, spoiler)
    began(fed, spoiler, SPOILER, tmp_path / "spoiler")
    fed.end(*honest, timeout_s=240)
    fed.check_models(members=honest)
    for round_, how in enumerate(PLAN):
        in_sum = summed(fed, round_)
        assert in_sum >= set(honest), how
        assert spoiler not in in_sum or how in ("confirm", "unmask", "second"), how
    code, said = fed.exit_of(spoiler)
    assert code != 0
    assert "the update holds NaN or infinity" in said
    assert "refused: chunk 0 of" in said
    late, second = named_in_audit(fed)
    assert (late["member"], second["member"]) == (spoiler, spoiler)
    assert "was late or silent in 3 of the last 5 attempts" in str(late["reason"])
    assert "sent no key shares in time" in str(late["reason"])
    assert "sent two different messages for one step" in str(second["reason"])
    for shown in (page(fed), fed.aggregator("rounds", "--data", fed.data)):
        misses = ("did not join", "did not finish its upload", "did not confirm", "did not answer")
        for miss in (*misses, "two different messages"):
            assert miss in shown
        assert f"Call {spoiler}" in shown
        assert not any(f"Call {member}" in shown for member in honest)


def test_an_update_that_is_not_clipped(new_federation: NewFederation, tmp_path: Path) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.begin(clip_norm=1.0, bits=32, first_bits=32)
    spoiler = fed.members[3]
    honest = others(fed.members, spoiler)
    began(fed, spoiler, UNCLIPPED, tmp_path / "spoiler")
    wait_until(lambda: fed.state().status == "stalled", "a round that is held", 200)
    shown = page(fed)
    assert "Nobody can tell whose update it was" in shown
    assert "Never release by guess" in shown
    assert "The half whose round is held again has the spoiler in it" in shown
    assert named_in_audit(fed) == [], "nobody can be named"
    fed.sign_roster("remove", "--member", spoiler)  # which has owned up, or was found at home
    release = ("--base", fed.spec().base_model_hash.hex(), "--part", "decoder")
    fed.sign_roster("release", *release, "--old", ",".join(fed.members), "--new", ",".join(honest))
    fed.install_roster()
    fed.end(*honest)
    fed.check_round(0, honest)
    fed.check_models(members=honest)
    assert fed.exit_of(spoiler)[0] != 0
