"""A federation in a real kind cluster: two aggregator pods, PostgreSQL, an object store, four institutions, TLS.

The tests go through one life of an installation, in this order: install, rounds, killed pods, upgrades, a restore,
what is refused, uninstall. Which tools make the cluster is said in tests/cluster/kind.py; without them all is skipped.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
import threading
from collections.abc import Iterator

import obstore
import pytest
from obstore.store import S3Store
from tests.cluster.installation import (
    AGGREGATOR,
    CHARTS,
    OUTSIDE,
    RELEASE,
    SERVICES_IMAGE,
    Installation,
)
from tests.cluster.kind import Cluster, ClusterError, cluster, run, run_bytes, until, world_or_skip
from tests.cluster.observer import Observer
from tests.support.repository import ROOT

from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.encoding.encoder import loss_units
from fedddpm_protocol.wire.phases import Phase

pytestmark = pytest.mark.cluster
MEMBERS = ("clinic-bergen", "hospital-porto", "lab-lyon", "st-marys")
WEIGHT = 65535  # of everybody
VERSION = importlib.metadata.version("fedddpm-protocol")
BUILT = {
    "aggregator": f"fedddpm-aggregator:{VERSION}",
    "institution": f"fedddpm-institution:{VERSION}-cpu",
}  # make images


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    world = world_or_skip()
    with cluster(world, tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def site(here: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Everything installed, and enrolled; no run yet."""
    engine = here.world.engine
    run(sys.executable, ROOT / "scripts" / "images.py", "--engine", engine, timeout_s=1800)
    tags = {name: _named(engine, built) for name, built in BUILT.items()}
    extra = shlex.split(os.environ.get("ENGINE_BUILD_ARGS", ""))
    run(engine, "build", *extra, "-t", SERVICES_IMAGE, ROOT / "tests" / "cluster" / "services", timeout_s=900)
    here.load([*tags.values(), SERVICES_IMAGE])
    installation = Installation(here, tmp_path_factory.mktemp("installation"), MEMBERS, tags)
    installation.enrol()
    installation.install_services()
    installation.prepare_namespace(AGGREGATOR)
    installation.install_aggregator()
    for member in MEMBERS:
        installation.prepare_site(member)
    return installation


def _named(engine: str, image: str) -> str:
    """The same image under a name that the cluster does not look for in a registry."""
    name = f"localhost/{image.rpartition('/')[2]}"
    run(engine, "tag", image, name)
    return name


@pytest.fixture(scope="module")
def observer(site: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observer]:
    federation = site.federation
    with Observer(
        OUTSIDE,
        federation.site(MEMBERS[0]) / "identity.key",
        bytes.fromhex(federation.root_public),
        site.authority.ca,
        tmp_path_factory.mktemp("observer"),
    ) as watching:
        yield watching


def test_two_rounds_by_four_pods(site: Installation, observer: Observer) -> None:
    modes = dict(zip(MEMBERS, ("job", "job", "deployment", "deployment"), strict=True))
    for member, mode in modes.items():
        site.install_site(member, mode)
    site.start_run("first", rounds=2)
    observer.until_finished("first")
    _check_models(observer, "first", rounds=2)
    for line in site.lines("first"):
        assert (line["phase"], line["attempt"], sorted(line["survivors"])) == ("done", 0, list(MEMBERS))
    for member in (name for name, mode in modes.items() if mode == "job"):
        site.cluster.kubectl("wait", "--for=condition=complete", "job", "--all", "-n", member, "--timeout=120s")
    for member in MEMBERS:
        labels = "app.kubernetes.io/name=institution"
        assert "Traceback" not in site.cluster.logs(member, "-l", labels, "--tail=-1")
        site.install_site(member)  # from here on everybody stands by, with the state of the first run
    _check_sums(site, "first")


def test_a_round_inside_the_cluster_by_helm_test(site: Installation) -> None:
    printed = site.cluster.helm("test", RELEASE, "-n", AGGREGATOR, "--logs", "--timeout", "180s")
    assert "selftest passed" in printed


def test_pods_die_in_the_middle_of_a_round(site: Installation, observer: Observer) -> None:
    rounds = 6
    site.start_run("killed", rounds, epochs=40, shares_s=30, masked_s=30, confirm_s=30)
    victim = MEMBERS[3]
    observer.until_phase("killed", range(3), Phase.JOIN)  # on a busy machine the first may be over already
    first_pod = site.site_pod(victim)
    site.cluster.kill(victim, first_pod)  # while it trains, perhaps; it comes back and joins
    observer.until_phase("killed", range(1, 5), Phase.SHARES, Phase.MASKED, Phase.CONFIRM, Phase.UNMASK)
    servers = {pod["metadata"]["name"] for pod in site.servers()}
    second_pod = site.site_pod(victim)
    dying = sorted(servers)[0]
    site.cluster.kill(AGGREGATOR, dying)
    site.cluster.kill(victim, second_pod)
    observer.until_finished("killed")
    _check_models(observer, "killed", rounds)
    assert len({first_pod, second_pod, site.site_pod(victim)}) == 3
    assert dying not in {pod["metadata"]["name"] for pod in site.servers()}
    done = [line for line in site.lines("killed") if line["phase"] == "done"]
    assert [line["round"] for line in done] == list(range(rounds))
    assert victim in done[-1]["survivors"]
    _check_lost_attempts(site, "killed")
    _check_nobody_gave_up(site)
    _check_sums(site, "killed", lost=victim)


def test_an_upgrade_while_a_round_runs(site: Installation, observer: Observer) -> None:
    before = {pod["metadata"]["name"] for pod in site.servers()}
    site.start_run("upgraded", rounds=3, epochs=40)
    observer.until_phase("upgraded", range(2), Phase.JOIN)
    failures: list[BaseException] = []
    upgrade = threading.Thread(target=_caught(site.install_aggregator, failures, settings={"KEEP_ROUNDS": 40}))
    upgrade.start()
    observer.until_finished("upgraded")
    upgrade.join()
    assert not failures
    assert before.isdisjoint(pod["metadata"]["name"] for pod in site.servers())
    _check_models(observer, "upgraded", rounds=3)
    assert {(line["phase"], line["attempt"]) for line in site.lines("upgraded")} == {("done", 0)}
    _check_nobody_gave_up(site)
    _check_sums(site, "upgraded")


def test_a_failed_upgrade_is_rolled_back(site: Installation, observer: Observer) -> None:
    settings = {"KEEP_ROUNDS": 40}
    before = sorted(pod["metadata"]["name"] for pod in site.servers())
    site.start_run("rolled-back", rounds=2, epochs=40)
    observer.until_phase("rolled-back", range(2), Phase.JOIN)  # on a busy machine the first may be over already
    image = {"repository": site.aggregator_values()["image"]["repository"], "tag": "never-built"}
    hook = {"hook": False}  # else the hook's pod, which has the same image, is what fails
    with pytest.raises(ClusterError):
        site.install_aggregator(back=True, wait_s=45, settings=settings, image=image, prepare=hook)
    assert sorted(pod["metadata"]["name"] for pod in site.servers()) == before
    status = json.loads(site.cluster.helm("status", RELEASE, "-n", AGGREGATOR, "-o", "json"))
    assert status["info"]["status"] == "deployed"
    observer.until_finished("rolled-back")
    _check_models(observer, "rolled-back", rounds=2)
    _check_nobody_gave_up(site)
    assert {(line["phase"], line["attempt"]) for line in site.lines("rolled-back")} == {("done", 0)}


def test_a_roster_of_another_root_stops_an_upgrade_before_any_pod_changes(site: Installation) -> None:
    before = sorted(pod["metadata"]["name"] for pod in site.servers())
    roster = json.loads(site.federation.roster.read_text())
    other = Installation(site.cluster, site.folder / "other", MEMBERS, site.tags)
    other.enrol()
    federation = {"rootKey": site.federation.root_public, "roster": other.federation.roster.read_text()}
    assert roster != json.loads(federation["roster"])
    with pytest.raises(ClusterError):
        site.install_aggregator(wait_s=60, federation=federation, settings={"KEEP_ROUNDS": 40})
    last = site.cluster.logs(AGGREGATOR, f"job/{RELEASE}-prepare").strip().splitlines()[-1]
    assert last.startswith("error: "), last
    assert "root" in last
    assert sorted(pod["metadata"]["name"] for pod in site.servers()) == before
    site.install_aggregator(settings={"KEEP_ROUNDS": 40})


def test_dump_wipe_restore_verify(site: Installation, observer: Observer) -> None:
    here = site.cluster
    assert "error" not in site.in_server("fedddpm-aggregator", "verify").lower()
    here.kubectl("scale", f"deployment/{RELEASE}", "-n", AGGREGATOR, "--replicas=0")
    gone = ("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=server", "--timeout=120s")
    here.kubectl(*gone, "-n", AGGREGATOR)  # one that is about to leave still writes
    with site.store() as store:
        objects = {entry["path"]: bytes(obstore.get(store, entry["path"]).bytes()) for entry in _listed(store)}
        dump = _postgresql(site, "pg_dump -h 127.0.0.1 -U $POSTGRES_USER -Fc $POSTGRES_DB")
        assert objects
        obstore.delete(store, sorted(objects))
        sql = "psql -v ON_ERROR_STOP=1 -h 127.0.0.1 -U $POSTGRES_USER $POSTGRES_DB"
        _postgresql(site, sql, b"DROP SCHEMA public CASCADE; CREATE SCHEMA public;")
        assert not _listed(store)
        assert b"(0 rows)" in _postgresql(site, sql, b"SELECT tablename FROM pg_tables WHERE schemaname = 'public';")
        _postgresql(site, "pg_restore -h 127.0.0.1 -U $POSTGRES_USER -d $POSTGRES_DB --clean --if-exists", dump)
        for path, content in objects.items():
            obstore.put(store, path, content)
    here.kubectl("scale", f"deployment/{RELEASE}", "-n", AGGREGATOR, "--replicas=2")
    here.kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", AGGREGATOR, "--timeout=180s")
    site.in_server("fedddpm-aggregator", "verify")
    site.start_run("restored", rounds=1)
    observer.until_finished("restored")
    _check_models(observer, "restored", rounds=1)
    _check_nobody_gave_up(site)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("database", "database"),
        ("root", "root"),
        ("key", "server.key"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(site: Installation, fault: str, words: str) -> None:
    namespace = f"bad-{fault}"
    here = site.cluster
    site.prepare_namespace(namespace)
    url = "postgresql://nobody:secret-word@store.services.svc:8333/none"
    here.secret(namespace, "database", {"url": url})
    changes: dict[str, object] = {"service": {}, "replicas": 1, "data": {"ephemeral": True}}
    changes |= {"database": {"kind": "sqlite"}, "blobs": {"kind": "volume"}, "prepare": {"waitSeconds": 5}}
    if fault == "database":
        changes["database"] = {"kind": "external", "existingSecret": "database"}
        changes["blobs"] = site.aggregator_values()["blobs"]
    elif fault == "root":
        changes["federation"] = {"rootKey": "ab" * 32, "roster": site.federation.roster.read_text()}
    else:
        here.secret(namespace, "server-key", {"server.key": "no key at all"})
    with pytest.raises(ClusterError):
        here.install(RELEASE, CHARTS / "aggregator", namespace, site.aggregator_values(**changes), wait_s=20)
    pod = until(lambda: here.pods(namespace, "app.kubernetes.io/component=server"), "a pod")[0]["metadata"]["name"]

    def said() -> list[str]:
        try:
            return here.logs(namespace, pod, "-c", "prepare").strip().splitlines()
        except ClusterError:
            return []

    lines = until(lambda: [line for line in said() if line.startswith("error: ")], "an error in one line", 120)
    assert words in lines[-1], lines
    everything = "\n".join(said())
    assert "Traceback" not in everything
    assert "secret-word" not in everything
    here.helm("uninstall", RELEASE, "-n", namespace)


def test_a_missing_secret_is_said_before_anything_is_made(site: Installation) -> None:
    here, namespace = site.cluster, "bad-secrets"
    here.namespace(namespace)
    with pytest.raises(ClusterError, match=r"serverKey\.existingSecret names the Secret server-key, which is not in"):
        here.install(RELEASE, CHARTS / "aggregator", namespace, site.aggregator_values(service={}))
    here.secret(namespace, "server-key", {"private.key": "of another name"})
    with pytest.raises(ClusterError, match=r"the Secret server-key has no key server\.key.* it has private\.key"):
        here.install(RELEASE, CHARTS / "aggregator", namespace, site.aggregator_values(service={}))
    with pytest.raises(ClusterError, match=r"identity\.existingSecret names the Secret identity, which is not in"):
        here.install("site", CHARTS / "institution", namespace, site.site_values())
    assert here.pods(namespace) == []


def test_uninstall_leaves_what_must_not_be_lost(site: Installation) -> None:
    here = site.cluster
    for member in MEMBERS:
        here.helm("uninstall", "site", "-n", member, "--wait", "--timeout", "120s")
        claims = here.get("pvc", "-n", member)["items"]
        assert len(claims) == 1
    here.helm("uninstall", RELEASE, "-n", AGGREGATOR, "--wait", "--timeout", "120s")
    parts = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component!=test"  # helm keeps its tests' pods
    until(lambda: not here.pods(AGGREGATOR, parts), "no pods")
    left = {item["metadata"]["name"] for item in here.get("secrets", "-n", AGGREGATOR)["items"]}
    assert {"server-key", "store", "tls"} <= left


# --- what every run must satisfy -------------------------------------------------------------------------------------


def _check_models(observer: Observer, name: str, rounds: int) -> None:
    """All rounds are published, and each model is what follows from its base and the opened sums."""
    results: list[RoundResult] = observer.results(name)
    assert [result.round for result in results] == list(range(rounds))
    for result in results:
        assert observer.recompute(result) == result.model_hash


def _check_nobody_gave_up(site: Installation) -> None:
    """No institution's program ended by itself: what befell the aggregator was waited for."""
    for member in MEMBERS:
        for pod in site.cluster.pods(member):
            assert [status["restartCount"] for status in pod["status"].get("containerStatuses", [])] == [0], member


def _check_sums(site: Installation, name: str, lost: str = "") -> None:
    """The opened weights and losses are the sum of what the survivors recorded; ``lost`` may have no record."""
    records = {member: [e for e in site.site_rounds(member) if e["run"] == name] for member in MEMBERS}
    checked = 0
    for line in (line for line in site.lines(name) if line["phase"] == "done"):
        own = [e for member in line["survivors"] for e in records[member] if e["round"] == line["round"]]
        if len(own) < len(line["survivors"]) and lost in line["survivors"]:
            continue
        before, after = (sum(loss_units(entry[field]) for entry in own) for field in ("loss_before", "loss_after"))
        assert line["sums"] == [WEIGHT * len(own), before, after]
        checked += 1
    assert checked


def _check_lost_attempts(site: Installation, name: str) -> None:
    """An attempt failed only where fewer members than the threshold stayed to its end."""
    threshold = 3  # of 4 members with c_max = 1
    for line in site.lines(name):
        if line["phase"] != "done":
            assert len(line["survivors"]) <= threshold, line
            assert line["reason"], line


def _caught(call: object, failures: list[BaseException], **arguments: object) -> object:
    def guarded() -> None:
        try:
            call(**arguments)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    return guarded


def _postgresql(site: Installation, command: str, stdin: bytes = b"") -> bytes:
    """A command in the pod of PostgreSQL, as docs/cluster.md has it."""
    words = f"PGPASSWORD=$(cat $POSTGRES_PASSWORD_FILE) {command}"
    pod = ("exec", "-i", "-n", AGGREGATOR, f"statefulset/{RELEASE}-postgresql", "--", "sh", "-c", words)
    return run_bytes("kubectl", "--kubeconfig", site.cluster.kubeconfig, *pod, stdin=stdin)


def _listed(store: S3Store) -> list[dict[str, str]]:
    return [entry for page in obstore.list(store) for entry in page]  # type: ignore[misc]
