"""An institution as a cluster runs it: stood by, stopped by SIGTERM, watched by probes and by whoever reads its log."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.attacks.test_secrets import forms
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import TRAINING, Federation, sitecustomize, wait_until
from tests.e2e.outages.test_institution_killed import EVERY_STEP, step_of

from fedddpm.identity import Identity
from fedddpm_protocol.wire.phases import Phase


def terminate(fed: Federation, member: str) -> None:
    """SIGTERM, as a pod gets; it must be gone long before the grace period of 30 s is over."""
    process = fed.processes.pop(member)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert fed.log(member).rstrip().splitlines()[-1].find("Stopped. The same command goes on") >= 0
    fed.require_no_trace()


def next_run(fed: Federation, name: str, seed: int) -> None:
    """A second run from another first model."""
    (fed.folder / "theta0.safetensors").unlink()
    fed.start_run(name, "UDEC", fed.init_model(8, 1, "tiny", seed), rounds=1, **TRAINING)


def said(fed: Federation, member: str, text: str) -> None:
    wait_until(lambda: text in fed.log(member), f"{text!r} in the log of {member}")


def test_standing_by_for_the_next_run(new_federation: NewFederation) -> None:
    """With one state folder through two runs and two restarts; a finished run is not joined again."""
    fed = new_federation()
    fed.start()
    pod, others = fed.members[0], fed.members[1:]
    fed.join_in(pod, stand_by=True)
    fed.join_here(*others)
    fed.end(*others)
    said(fed, pod, "standing by for the next run")
    terminate(fed, pod)
    proxy = fed.proxy(pod)
    fed.join_in(pod)
    assert fed.processes[pod].wait(60) == 0, "without --stand-by it leaves at once, as a Job that was started again"
    assert "no rounds ended since this start" in fed.log(pod)
    fed.join_in(pod, stand_by=True)
    wait_until(lambda: fed.log(pod).count("run run-1 is finished") == 3, "the end of the run seen after a restart")
    next_run(fed, "run-2", 2)
    fed.join_here(*others)
    fed.end(*others)
    wait_until(lambda: len(fed.site_rounds(pod)) == 2, "the result of the second run")
    assert [(entry["run"], entry["took_part"]) for entry in fed.site_rounds(pod)] == [("run-1", True), ("run-2", True)]
    said(fed, pod, "run run-2 is finished")
    assert fed.processes[pod].poll() is None
    terminate(fed, pod)
    assert len(proxy.requests("POST .*/joins")) == 1, "that of the second run"
    fed.check_models()


def test_the_last_results_of_a_run_that_ended_while_it_was_away(new_federation: NewFederation) -> None:
    fed = new_federation("abcd", c_max=1)
    fed.start(join_s=25, shares_s=6)
    away, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(away).hold("GET .*/cohort")
    fed.join_in(away)
    fed.join_here(*others)
    hold.wait()
    fed.kill(away)
    fed.end(*others)
    first = fed.results()[-1].model_hash
    next_run(fed, "run-2", 2)
    hold.go_on.set()
    fed.join_in(away)
    fed.join_here(*others)
    fed.end()
    assert [(entry["run"], entry["took_part"]) for entry in fed.site_rounds(away)] == [
        ("run-1", False),
        ("run-2", True),
    ]
    assert fed.results()[-1].model_hash != first
    fed.check_models()


@pytest.mark.parametrize("moment", ["training", pytest.param("unmask", marks=pytest.mark.soak)])
def test_a_pod_that_is_stopped_goes_on_where_it_was(new_federation: NewFederation, tmp_path: Path, moment: str) -> None:
    fed = new_federation("abc", c_max=1)
    fed.start(epochs=12 if moment == "training" else 1, unmask_s=60)
    pod, others = fed.members[0], fed.members[1:]
    fed.join_here(*others)
    if moment == "training":
        often = sitecustomize(tmp_path / "often", EVERY_STEP)
        checkpoint = fed.site(pod) / "state" / "training.safetensors"
        fed.join_in(pod, environment=often)
        wait_until(lambda: step_of(checkpoint) > 3, "some steps of training")
        terminate(fed, pod)
        assert 3 < step_of(checkpoint) < 24
    else:
        hold = fed.proxy(pod).hold("POST .*/unmask")
        fed.join_in(pod)
        hold.wait()
        terminate(fed, pod)
        assert fed.lines(0)[-1].phase == Phase.UNMASK
    fed.join_in(pod)
    fed.end()
    if moment == "unmask":
        first, second = fed.proxy(pod).requests("POST .*/unmask")
        assert first.body == second.body
    fed.check_round(0, fed.members)
    fed.check_models()


def test_probes_metrics_and_a_log_for_programs(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start()
    pod, others = fed.members[0], fed.members[1:]
    hold = fed.proxy(pod).hold("POST .*/upload")
    fed.join_here(*others)
    fed.join_in(pod, log_format="json", metrics={"port": 0}, stand_by=True)
    hold.wait()
    events = read_log(fed, pod)
    port = next(event["port"] for event in events if event["event"] == "metrics")
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    seen = values(page)
    assert seen["fedddpm_institution_phase{phase=uploading}"] == 1
    assert seen["fedddpm_institution_round"] == 0
    assert seen["fedddpm_institution_training_steps"] == seen["fedddpm_institution_training_steps_planned"] == 2
    assert seen["fedddpm_institution_sent_bytes_total"] > 100_000
    assert seen["fedddpm_institution_seconds_total{work=training}"] > 0
    assert seen["fedddpm_institution_aggregator_away"] == 0
    health = httpx.get(f"http://127.0.0.1:{port}/healthz")
    assert (health.status_code, health.text) == (200, "uploading\n")
    hold.go_on.set()
    fed.end(*others)
    said(fed, pod, "standing by")
    after = values(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    assert after["fedddpm_institution_rounds_finished_total{in_mean=true}"] == 1
    assert after["fedddpm_institution_phase{phase=standing-by}"] == 1
    terminate(fed, pod)
    check_log(fed, pod, read_log(fed, pod))
    secret = Identity.load(fed.site(pod) / "identity.key").key.seed
    for form in forms(secret):
        assert form not in (page + fed.log(pod)).encode(errors="replace")
    for other in others:
        assert other not in page, "nothing of anybody else"


def read_log(fed: Federation, member: str) -> list[dict[str, object]]:
    """Every line is an object of its own."""
    return [json.loads(line) for line in fed.log(member).splitlines()]


def check_log(fed: Federation, member: str, events: Sequence[dict[str, object]]) -> None:
    named = [event["event"] for event in events]
    order = ["metrics", "started", "images", "run-joined", "training", "trained", "joined", "uploaded"]
    order += ["round-ended", "run-over", "standing-by", "stopped"]
    assert [name for name in dict.fromkeys(named) if name in order] == order
    started, ended = events[named.index("started")], events[named.index("round-ended")]
    assert started["key"] == Identity.load(fed.site(member) / "identity.key").fingerprint
    assert (ended["run"], ended["round"], ended["attempt"]) == ("run-1", 0, 0)
    assert ended["mean_loss_after"] is not None
    for event in events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", str(event["time"]))
        assert event["level"] in ("info", "warning")


def values(page: str) -> dict[str, float]:
    """Samples of a page of metrics by name and labels."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found
