"""A small federation for the tests: keys, roster, first model, data directory, and a server over it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from tests.support import fork_server

from fedddpm_aggregator.app import KEY_PURPOSE, open_context
from fedddpm_aggregator.security.key_files import read_key, write_key
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.rosters import initialise, install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import first_model, next_charter, start_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import KEY_FILE, Settings
from fedddpm_aggregator.vectors.model_files import write_safetensors
from fedddpm_protocol.agreement.charter import Charter, sign_charter
from fedddpm_protocol.agreement.model_layout import Architecture, Manifest, TensorSpec, coordinates
from fedddpm_protocol.agreement.roster import Member, Roster, Sharding, sign_roster
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.wire.messages import SignedDocument

ARCHITECTURE = Architecture("tiny", 8, 1, 8, (1, 2))
MANIFESTS = {
    "encoder": (TensorSpec("encoder.a", (3, 5)), TensorSpec("encoder.b", (7,))),
    "bottleneck": (TensorSpec("bottleneck.a", (2, 2, 5)),),
    "decoder": (TensorSpec("decoder.a", (30,)), TensorSpec("decoder.b", (1, 13))),
}
WIDER = {
    "encoder": (TensorSpec("encoder.a", (300,)),),
    "bottleneck": (TensorSpec("bottleneck.a", (100,)),),
    "decoder": (TensorSpec("decoder.a", (600,)), TensorSpec("decoder.b", (100,))),
}
UNHURRIED = OperatorSettings()
# Rounds are quick because everybody answers: no phase ends by its time on a busy machine, unless a test says so.
QUICK = dict.fromkeys(("join_s", "shares_s", "masked_s", "confirm_s", "unmask_s"), 300.0)


def identity_of(name: str) -> SigningKey:
    return SigningKey((name.encode() * 32)[:32])


@dataclass
class Federation:
    """A data directory with a roster in force."""

    folder: Path
    database_url: str | None = None
    members: tuple[str, ...] = ("a", "b", "c", "d")
    c_max: int = 1
    n_min: int = 3
    sharding: tuple[Sharding, ...] = ()
    operators: tuple[Member, ...] = ()
    root: SigningKey = field(default_factory=SigningKey.generate)
    manifests: dict[str, Manifest] = field(default_factory=lambda: MANIFESTS)
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.settings.data.mkdir(parents=True)
        write_key(self.settings.data / KEY_FILE, SigningKey.generate(), KEY_PURPOSE)
        key = read_key(self.settings.data / KEY_FILE, KEY_PURPOSE)
        members = tuple(Member(name, identity_of(name).public_key) for name in sorted(self.members))
        rules = {"operators": self.operators, "sharding": self.sharding}
        self.roster = Roster("test", 1, self.c_max, self.n_min, key.public_key, members, **rules)  # type: ignore[arg-type]
        with self.context() as ctx:
            initialise(ctx, self.root.public_key)
            install_roster(ctx, sign_roster(self.roster, self.root))

    @property
    def settings(self) -> Settings:
        return Settings(data=self.folder / "data", database_url=self.database_url, port=0, tick_s=0.1, lease_s=1.0)

    @contextlib.contextmanager
    def context(self) -> Iterator[Context]:
        ctx = open_context(self.settings)
        try:
            yield ctx
        finally:
            ctx.database.close()

    def write_theta_0(self, scale: float = 1.0) -> Path:
        """The first model; another ``scale`` gives another one."""
        path = self.folder / "theta_0.safetensors"
        values = theta_0(self.manifests) * np.float32(scale)
        path.write_bytes(to_safetensors(ARCHITECTURE, self.manifests, values))
        return path

    def start_run(self, method: str = "UDEC", rounds: int = 2, scale: float = 1.0, **changes: Any) -> None:
        """Sign and start run-1: many small chunks, which only the widest ring allows, unless ``changes`` say otherwise.

        Sample counts are hidden, so that the sums of weights tell who is in them.
        """
        durations = {**QUICK, **{name: changes.pop(name) for name in (*QUICK, "on_alarm") if name in changes}}
        fields: dict[str, Any] = {"name": "run-1", "method": method, "rounds": rounds, "chunk_coordinates": 16}
        fields |= {"bits": 32, "weighting": "hidden"}
        settings, model = RunSettings(**{**fields, **changes}), self.write_theta_0(scale)
        with self.context() as ctx:
            self.start(ctx, settings, model, OperatorSettings(**durations))

    def start(
        self, ctx: Context, settings: RunSettings, model: Path, durations: OperatorSettings = UNHURRIED
    ) -> Charter:
        """Sign a run with these settings and start it."""
        number, _, ends = next_charter(ctx)
        return start_run(ctx, self.signed(settings, model, number, ends), durations, model)[0]

    def signed(self, settings: RunSettings, model: Path, number: int = 1, ends: tuple[str, ...] = ()) -> SignedDocument:
        """A charter as the root signs it, away from any server."""
        return sign_charter(draft_charter(settings, self.roster, first_model(model), number, ends), self.root)

    def install(self, **changes: object) -> Roster:
        """Sign and install the next roster version."""
        self.roster = dataclasses.replace(self.roster, version=self.roster.version + 1, **changes)  # type: ignore[arg-type]
        with self.context() as ctx:
            install_roster(ctx, sign_roster(self.roster, self.root))
        return self.roster


def to_safetensors(architecture: Architecture, manifests: dict[str, Manifest], vector: np.ndarray) -> bytes:
    """A model file."""
    file = io.BytesIO()
    write_safetensors(file, architecture, manifests, vector)
    return file.getvalue()


def theta_0(manifests: dict[str, Manifest] = MANIFESTS) -> np.ndarray:
    size = sum(coordinates(manifest) for manifest in manifests.values())
    return np.linspace(-1, 1, size, dtype=np.float32)


class ServerProcess:
    """A process of ``fedddpm-aggregator serve`` that can be killed and started again on the same port."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.variables: dict[str, str] = {}  # of the process, beside those of the tests
        self._process: fork_server.Process | None = None

    def start(self) -> None:
        arguments = ["serve", "--port", str(self.port), "--data", str(self.federation.settings.data)]
        if self.federation.database_url:
            arguments += ["--database-url", self.federation.database_url]
        quick = {"FEDDDPM_AGGREGATOR_TICK_S": "0.1", "FEDDDPM_AGGREGATOR_LEASE_S": "0.5"}
        env = os.environ | quick | self.variables
        with (self.federation.folder / "server.log").open("ab") as log:
            self._process = fork_server.start(
                "fedddpm-aggregator", *arguments, environment=env, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "listening on" in line, (self.federation.folder / "server.log").read_text()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


def with_metadata(path: Path, **notes: str) -> Path:
    """Rewrite a safetensors file with the same tensors and more, or other, metadata."""
    data = path.read_bytes()
    metadata = metadata_of(data) | {f"fedddpm.{name}": value for name, value in notes.items()}
    path.write_bytes(safetensors.numpy.save(read_safetensors(data), metadata))
    return path


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(data)


def metadata_of(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(data[8 : 8 + size])
    return header["__metadata__"]
