"""How membership changes as people do it: a new key, a roster signed by the root, a notice; and what is refused."""

from __future__ import annotations

import shutil

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, blobs, command_error, wait_until

from fedddpm.identity import Identity
from fedddpm.transport.problems import NotEnrolledError
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.phases import Phase


def first_round(fed: Federation) -> None:
    """Start a run and let everybody finish its first round."""
    fed.start(rounds=2)
    fed.join_here(rounds=1)
    fed.end()


# --- who takes part ------------------------------------------------------------------------------------------------


def test_a_lost_key(new_federation: NewFederation) -> None:
    """The id stays, the key and the state are new; whoever has the old key is refused by name."""
    fed = new_federation("abc")
    first_round(fed)
    member = fed.members[0]
    fed.site(member).rename(fed.folder / "stolen")
    fed.new_identity(member)
    fed.sign_roster("add", "--member", f"{member}={fed.public_key(member)}")
    fed.install_roster()
    thief = Identity.load(fed.folder / "stolen" / "identity.key")
    fed.join_in(member, identity="../stolen/identity.key", state_dir="../stolen/state")
    code, said = fed.exit_of(member)
    assert code == 4
    assert f"the aggregator does not know '{member}' with the key {thief.fingerprint}" in said
    assert "ask for a new signed roster" in said
    del fed.processes[member]
    fed.join_here()
    fed.end()
    fed.check_round(1, fed.members)
    fed.check_models()


def test_a_member_leaves(new_federation: NewFederation) -> None:
    """Removed while the round waits for it: the others go on at once, it is told."""
    fed = new_federation("abcd", c_max=1)
    first_round(fed)
    *others, leaver = fed.members
    fed.join_here(*others)
    wait_until(lambda: any(len(line.joined) == 3 for line in fed.lines(1)), "the JOINs of the others")
    fed.sign_roster("remove", "--member", leaver)
    fed.install_roster()
    fed.end(*others)
    fed.check_round(1, others)
    fed.check_models(members=others)
    fed.join_in(leaver)
    code, said = fed.exit_of(leaver)
    assert code == 4
    assert f"the aggregator does not know '{leaver}'" in said


def test_a_member_is_removed_while_it_takes_part(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    first_round(fed)
    *others, leaver = fed.members
    hold = fed.proxy(leaver).hold("POST .*/upload")
    fed.join_here()
    hold.wait()
    fed.sign_roster("remove", "--member", leaver)
    fed.install_roster()
    wait_until(lambda: fed.lines(1)[-1].attempt == 1, "the next attempt")
    hold.go_on.set()
    assert isinstance(fed.failure_of(leaver), NotEnrolledError)
    fed.end(*others)
    assert "removes a member of the cohort" in str(fed.lines(1)[0].reason)
    fed.check_round(1, others)
    fed.check_models(members=others)


def test_a_new_member_in_the_middle(new_federation: NewFederation) -> None:
    """It makes theta_0 from its seed, fetches the newest base by hash, and takes part like everybody."""
    fed = new_federation("abc")
    first_round(fed)
    fed.members = [*fed.members, "hospital-new"]
    fed.new_identity("hospital-new")
    blobs(fed.images("hospital-new"), 9, 20)
    proxy = fed.proxy("hospital-new")
    fed.join_in("hospital-new")
    code, said = fed.exit_of("hospital-new")
    assert code == 4
    assert "not enrolled" in said or "does not know 'hospital-new'" in said
    fed.sign_roster("add", "--member", f"hospital-new={fed.public_key('hospital-new')}")
    fed.install_roster()
    fed.join_in("hospital-new")
    fed.join_here(*fed.members[:3])
    fed.end()
    fed.check_round(1, fed.members)
    fed.check_models()
    fetched = {exchange.path.rsplit("/", 1)[1] for exchange in proxy.requests("GET /v1/models/")}
    assert fetched == {fed.spec().base_model_hash.hex()}
    assert [entry["round"] for entry in fed.site_rounds("hospital-new")] == [1]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_wrong_root_key(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    fed.start()
    fed.join_in(fed.members[0], federation_root=SigningKey.generate().public_key.hex())
    code, said = fed.exit_of(fed.members[0])
    assert code == 3
    assert "the roster is not signed by the root key" in said
    assert "Compare the fingerprint with the coordinator's by telephone" in said
    assert not fed.lines()[0].joined


def test_a_state_of_another_federation(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    first_round(fed)
    fed.join_in(fed.members[0], federation_root=SigningKey.generate().public_key.hex())
    code, said = fed.exit_of(fed.members[0])
    assert code == 5
    assert "belongs to another federation (another root key)" in said


def test_an_older_roster_is_not_installed_again(new_federation: NewFederation) -> None:
    fed = new_federation("abcd")
    shutil.copy(fed.roster, fed.folder / "old.json")
    fed.sign_roster("remove", "--member", fed.members[3])
    fed.install_roster()
    said = command_error("fedddpm-aggregator", "federation", "install", fed.folder / "old.json", "--data", fed.data)
    assert "roster version 1 is older than version 2, already seen; rosters never go back" in said


def test_a_roster_of_another_root_is_not_installed(new_federation: NewFederation) -> None:
    fed = new_federation("abc")
    other = Federation(fed.folder / "other", ())
    (other.folder / "root").mkdir(parents=True)
    fed.aggregator("federation", "root-keygen", "--out", other.root_key)
    server = ("--federation", fed.name, "--server-key", (fed.data / "server.pub").read_text().strip())
    members = [word for name in fed.members for word in ("--member", f"{name}={fed.public_key(name)}")]
    fed.aggregator("federation", "roster", "create", other.roster, "--root", other.root_key, *server, *members)
    said = command_error("fedddpm-aggregator", "federation", "install", other.roster, "--data", fed.data)
    assert "the roster is not signed by the pinned root key" in said


# --- a spent base model ----------------------------------------------------------------------------------------------


def spent_by_four(fed: Federation) -> str:
    """A session of all four fails after answers were given: three answers are needed, two arrive. Who went away."""
    fed.serve()
    gone, late, *others = fed.members
    never, slowly = fed.proxy(gone).hold("POST .*/unmask"), fed.proxy(late).hold("POST .*/unmask")
    fed.join_in(gone)
    fed.join_here(late, *others)
    wait_until(lambda: fed.proxy(gone).requests("GET /v1/state"), "the process that takes longest to start")
    fed.begin(unmask_s=6, join_s=12)
    never.wait()
    slowly.wait()
    fed.kill(gone)
    line = fed.wait_for(Phase.FAILED)
    assert "2 of 3 needed UNMASK answers came" in str(line.reason)
    slowly.go_on.set()
    never.go_on.set()
    return gone


@pytest.mark.soak  # also shown by shorter tests
def test_a_spent_base_waits_for_all_who_spent_it(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    gone = spent_by_four(fed)
    wait_until(lambda: fed.state().status == "stalled", "the stall")
    reason = str(fed.state().reason)
    assert f"Not heard of: {gone}" in reason
    assert "This base model is spent on the sum of hospital-a, hospital-b, hospital-c, hospital-d" in reason
    assert "federation roster release" in reason
    fed.join_in(gone)
    fed.end()
    assert {line.attempt for line in fed.lines(0)} == {0, 1}
    fed.check_round(0, fed.members)
    fed.check_models()


def test_the_root_releases_a_spent_base(new_federation: NewFederation) -> None:
    """One of those who spent it is gone for good: the root says so, once, in a signed roster."""
    fed = new_federation("abcd", c_max=1)
    gone = spent_by_four(fed)
    left = [member for member in fed.members if member != gone]
    wait_until(lambda: fed.state().status == "stalled", "the stall")
    assert fed.results() == []
    fed.sign_roster("remove", "--member", gone)
    release = ("--base", fed.spec().base_model_hash.hex(), "--part", "decoder")
    fed.sign_roster("release", *release, "--old", ",".join(fed.members), "--new", ",".join(left))
    fed.install_roster()
    fed.end(*left)
    fed.check_round(0, left)
    fed.check_models(members=left)
