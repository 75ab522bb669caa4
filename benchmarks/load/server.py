"""The measured side of service_load.py: a federation in a temporary folder and its real aggregator processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from benchmarks.load.clients import PART, identity_of

from fedddpm_aggregator.app import KEY_PURPOSE, open_context
from fedddpm_aggregator.security.key_files import write_key
from fedddpm_aggregator.service.administration.charter_drafts import draft_charter
from fedddpm_aggregator.service.administration.rosters import initialise, install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import first_model, next_charter, start_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import KEY_FILE, Settings
from fedddpm_aggregator.vectors.model_files import write_safetensors
from fedddpm_protocol.agreement.charter import sign_charter
from fedddpm_protocol.agreement.model_layout import Architecture, Manifest, TensorSpec
from fedddpm_protocol.agreement.roster import Member, Roster, Sharding, sign_roster
from fedddpm_protocol.primitives.keys import SigningKey

BITS = 16
RUN = "load"
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 2**20


@dataclass(frozen=True)
class Setup:
    """What stands still during a measurement."""

    institutions: int
    coordinates: int
    rounds: int = 1
    shards: int = 0  # 0: one cohort
    replicas: int = 1
    database_url: str | None = None  # None: SQLite in the folder
    blobs: str | None = None  # None: a directory in the folder

    @property
    def names(self) -> list[str]:
        """Members, sorted."""
        return [f"site-{number:04d}" for number in range(self.institutions)]


def roster_of(setup: Setup, server: bytes) -> Roster:
    """Everybody enrolled; one in twenty may conspire with the aggregator."""
    members = tuple(Member(name, identity_of(name).public_key) for name in setup.names)
    sharding: tuple[Sharding, ...] = ()
    c_max = max(1, setup.institutions // 20)
    if setup.shards:
        size = -(-setup.institutions // setup.shards)
        rules = Sharding(size, c_max, hashlib.sha256(b"service load").digest(), "a benchmark's fixed bytes")
        c_max, sharding = rules.needed_c_max(setup.institutions), (rules,)
    return Roster("load", 1, c_max, max(3, c_max + 2), server, members, sharding=sharding)


@dataclass
class Process:
    """An aggregator process, seen through /proc."""

    popen: subprocess.Popen[str]
    address: str

    def cpu_s(self) -> float:
        """CPU seconds so far, user and kernel."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self, field: str) -> float:
        """VmRSS (resident now) or VmHWM (the most so far) in MiB."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


@dataclass
class Served:
    """A federation that is being served."""

    setup: Setup
    folder: Path
    settings: Settings
    root_public: str
    processes: list[Process]

    def cpu_s(self) -> float:
        """CPU seconds of all replicas."""
        return sum(process.cpu_s() for process in self.processes)

    def database_mib(self) -> float:
        """Size of the database, SQLite's log included."""
        if self.setup.database_url is None:
            files = self.settings.data.glob("aggregator.sqlite*")
            return sum(file.stat().st_size for file in files) / _MIB
        with psycopg.connect(self.setup.database_url) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return float(row[0]) / _MIB if row else 0.0


@contextlib.contextmanager
def served(setup: Setup, folder: Path) -> Iterator[Served]:
    """Enrol everybody, start a run and the replicas; they end with the block."""
    settings = Settings(data=folder / "data", database_url=setup.database_url, blobs=setup.blobs)
    settings.data.mkdir(parents=True)
    key, root = SigningKey.generate(), SigningKey.generate()
    write_key(settings.data / KEY_FILE, key, KEY_PURPOSE)
    context = open_context(settings)
    initialise(context, root.public_key)
    install_roster(context, sign_roster(roster_of(setup, key.public_key), root))
    _start_run(context, setup, root, folder)
    context.database.close()
    processes: list[Process] = []
    try:
        for _ in range(setup.replicas):  # one after the other: the first migrates
            processes += [_start(settings, folder)]
        yield Served(setup, folder, settings, root.public_key.hex(), processes)
    finally:
        for process in processes:
            process.popen.terminate()
        for process in processes:
            process.popen.wait(60)
            if process.popen.stdout:
                process.popen.stdout.close()


def _start_run(context: Context, setup: Setup, root: SigningKey, folder: Path) -> None:
    settings = RunSettings(name=RUN, method="UDEC", rounds=setup.rounds, bits=BITS, first_bits=BITS)
    number, roster, _ = next_charter(context)
    model = _first_model(setup.coordinates, folder)
    charter = draft_charter(settings, roster, first_model(model), number)
    start_run(context, sign_charter(charter, root), OperatorSettings(3600.0, 3600.0, 3600.0, 3600.0, 3600.0), model)


def _first_model(coordinates: int, folder: Path) -> Path:
    """A network whose decoder has so many values; the rest is a stub."""
    manifests: dict[str, Manifest] = {
        "encoder": (TensorSpec("encoder.w", (8,)),),
        "bottleneck": (TensorSpec("bottleneck.w", (8,)),),
        PART: (TensorSpec(f"{PART}.w", (coordinates,)),),
    }
    vector = np.random.default_rng(0).standard_normal(coordinates + 16).astype(np.float32)
    path = folder / "theta0.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, Architecture("tiny", 28, 1, 8, (1, 2)), manifests, vector)
    return path


def _start(settings: Settings, folder: Path) -> Process:
    command = [sys.executable, "-m", "fedddpm_aggregator", "serve", "--port", "0", "--data", str(settings.data)]
    command += ["--database-url", settings.database_url] if settings.database_url else []
    command += ["--blobs", settings.blobs] if settings.blobs else []
    with (folder / "server.log").open("a") as log:
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    line = popen.stdout.readline() if popen.stdout else ""
    if "listening on" not in line:
        raise SystemExit(f"the aggregator did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
    return Process(popen, line.rsplit("//", 1)[1].strip())
