"""A round is held by an update that is not clipped: members open theirs to the auditor, who finds whose it was.

Four processes, a real aggregator. The honest ones finish their round without the spoiler, in the run that it held up.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from local_federation import CommandError
from tests.e2e.attacks.test_secrets import sealed_sums
from tests.e2e.attacks.test_spoilers import UNCLIPPED, began, others
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, wait_until

import fedddpm.updates.contribution as contribution
from fedddpm.config import LocalPolicyOptions
from fedddpm.rounds.sealed_update import open_rounds, words_again
from fedddpm.updates.update_store import UpdateStore
from fedddpm_aggregator.security.key_files import read_sealing_key

ENCODER = contribution.ValuesEncoder


class Magnifying(ENCODER):
    def chunk(self, index: int) -> np.ndarray:
        words = super().chunk(index)
        return words * words.dtype.type(1000)


def opened(fed: Federation, member: str) -> Path:
    """What a member writes for the auditor."""
    own = ("--state-dir", fed.site(member) / "state", "--identity", fed.site(member) / "identity.key")
    root = ("--federation-root", fed.root_public)
    shown = fed.fedddpm("open-update", *own, *root, "--out", fed.folder / "for-notary", "--yes")
    assert "notary" in shown
    return Path(shown.rsplit("written:", 1)[1].strip().replace("\n", ""))


def is_no_more_shown(fed: Federation, member: str) -> bool:
    try:
        opened(fed, member)
    except CommandError as error:
        return "notary, whom this update could be shown to, is the auditor no more" in str(error)
    return False


def judged(fed: Federation, key: Path, files: list[Path], *options: str) -> str:
    root = ("--federation-root", fed.root_public)
    return fed.aggregator("auditor", "judge", *files, "--key", key, *root, *options)


@pytest.mark.parametrize("lies", [False, True], ids=["opens what it sent", "opens what it should have sent"])
def test_the_spoiler_is_found_and_the_others_go_on(
    new_federation: NewFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies: bool
) -> None:
    fed = new_federation("abcd", c_max=1)
    key = fed.name_auditor("notary")
    fed.begin(clip_norm=1.0, bits=32, first_bits=32)
    spoiler = fed.members[3]
    honest = others(fed.members, spoiler)
    began(fed, spoiler, UNCLIPPED, tmp_path / "spoiler")
    wait_until(lambda: fed.state().status == "stalled", "a round that is held", 200)
    assert all(sealed_sums(fed, member) == ["sealed-secrets/decoder"] for member in fed.members)

    files = [opened(fed, member) for member in honest]
    among = judged(fed, key, files)
    assert among.count("as agreed") == 3
    assert f"not cleared: {spoiler}, which is no proof of anything" in " ".join(among.split())
    assert "release roster.json" not in among
    with pytest.raises(CommandError, match="cannot be made again as they were sent"):
        opened(fed, spoiler)  # its program's own words are others
    if lies:
        own = fed.site(spoiler) / "state" / "state.sqlite"
        honest_words = words_of(fed, spoiler)
        with sqlite3.connect(own) as db:
            (stored,) = db.execute("SELECT value FROM facts WHERE name = 'sealed-secrets/decoder'").fetchone()
            forged = json.dumps({**json.loads(stored), "words": honest_words}).encode()
            db.execute("UPDATE facts SET value = ? WHERE name = 'sealed-secrets/decoder'", (forged,))
        db.close()
    else:
        monkeypatch.setattr(contribution, "ValuesEncoder", Magnifying)
    files.append(opened(fed, spoiler))
    monkeypatch.setattr(contribution, "ValuesEncoder", ENCODER)

    (found,) = json.loads(judged(fed, key, files, "--json"))["sums"]
    assert (found["not_opened"], found["may_be_released"]) == ([], honest)
    findings = found["findings"]
    guilty = [finding for finding in findings if finding["fault"]]
    assert [finding["member"] for finding in guilty] == [spoiler]
    if lies:
        assert guilty[0]["fault"] == "it shows other words than it sent"
        assert guilty[0]["norm"] is None
    else:
        assert guilty[0]["norm"] > 100 * guilty[0]["limit"]
    for finding in findings[:3]:
        update = UpdateStore(fed.site(finding["member"]) / "state").load(fed.spec().base_model_hash)
        assert update is not None
        norm = min(1.0, float(np.linalg.norm(update.sent)))
        assert finding["norm"] == pytest.approx(norm, rel=1e-3)
    shown = judged(fed, key, files)
    assert f"{spoiler} broke the rules" in shown
    assert spoiler not in shown.rsplit("--new", 1)[1]
    for line in shown.splitlines():  # the commands that it shows are those that are needed
        if line.startswith("fedddpm-aggregator"):
            words = line.replace("roster.json", str(fed.roster)).replace("root.key", str(fed.root_key)).split()
            fed.aggregator(*words[1:])
    fed.install_roster()
    fed.end(*honest)
    fed.check_round(0, honest)
    fed.check_models(members=honest)
    for member in honest:  # there is a result: nothing is left to be opened
        assert sealed_sums(fed, member) == []
        with pytest.raises(CommandError, match="holds nothing that could be opened"):
            opened(fed, member)


def words_of(fed: Federation, member: str) -> str:
    """The digest of what an honest program would have sent, as hex."""
    state = fed.site(member) / "state"
    (round_,) = open_rounds(state, bytes.fromhex(fed.root_public))
    digest = hashlib.sha256()
    for _, _, words in words_again(state, round_):
        digest.update(words.data)
    return digest.hexdigest()


def test_files_that_are_wrong_are_told_in_one_line(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    key = fed.name_auditor("notary")
    fed.start()
    hold = fed.proxy(fed.members[0]).hold("POST .*/unmask")
    fed.join_here()
    hold.wait()
    wait_until(lambda: sealed_sums(fed, fed.members[1]), "an answer of the second")
    file = opened(fed, fed.members[1])
    other = fed.name_auditor("other")
    wait_until(lambda: is_no_more_shown(fed, fed.members[1]), "an institution that knows of the other auditor")
    hold.go_on.set()
    fed.end()
    for own, files, why in (
        (key, [file, file], "two of these files are of one member"),
        (fed.root_key, [file], "expected is the auditor's private key"),
        (other, [file], "none of these files says anything"),
    ):
        with pytest.raises(CommandError) as caught:
            judged(fed, own, files)
        assert why in str(caught.value.__cause__)
    # A file that is wrong hides nothing of the others.
    cut = fed.folder / "cut.json"
    cut.write_text(json.dumps({**json.loads(file.read_text()), "words": {}}))
    wrong = {fed.roster: "is no sealed update", fed.folder / "none.json": "cannot be read", cut: "does not verify"}
    told = json.loads(judged(fed, key, [*wrong, file, fed.folder], "--json"))
    assert len(told["sums"]) == 1
    for path, why in {**wrong, fed.folder: "is no file"}.items():
        assert why in told["prove_nothing"][str(path)]
    assert read_sealing_key(key).private.hex() not in file.read_text()


def test_who_does_not_want_it_keeps_nothing(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    fed.name_auditor("notary")
    fed.start()
    hold = fed.proxy(fed.members[0]).hold("POST .*/unmask")
    fed.join_here(fed.members[0], policy=LocalPolicyOptions(keep_for_auditor=False))
    fed.join_here(*fed.members[1:])
    hold.wait()
    assert sealed_sums(fed, fed.members[0]) == []
    hold.go_on.set()
    fed.end()
