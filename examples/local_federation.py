"""A whole federation on one machine: the root, an aggregator and institutions, each a process of its own.

Everything goes through the two installed commands, exactly as people on several machines would type them; the demo, the
benchmarks and the end-to-end tests are built on it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

BIN = Path(sys.executable).parent
DURATIONS = ("join_s", "shares_s", "masked_s", "confirm_s", "unmask_s")  # of phases: the operator's


class CommandError(RuntimeError):
    """A command ended with an error; the message holds what it printed."""


def run(*command: str | Path, timeout_s: float = 120) -> str:
    """Run a command to its end and return what it printed; CommandError with its words otherwise."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise CommandError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def free_port() -> int:
    """A port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _words(options: Mapping[str, object]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]


@dataclass
class LocalFederation:
    """Folders: root/ (the offline key), aggregator/, and one for each institution."""

    folder: Path
    members: Sequence[str]
    name: str = "example"
    c_max: int = 0
    n_min: int = 3
    port: int = field(default_factory=free_port)
    sdk_bin: Path = BIN
    database_url: str | None = None
    threads: int = 1  # per institution
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the aggregator answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """The aggregator's folder."""
        return self.folder / "aggregator"

    @property
    def root_key(self) -> Path:
        """The federation's root key: on paper or a stick in a safe, in real life."""
        return self.folder / "root" / "root.key"

    @property
    def root_public(self) -> str:
        """The root's public key, as every institution pins it (hex)."""
        return (self.folder / "root" / "root.pub").read_text().strip()

    def site(self, member: str) -> Path:
        """The folder of an institution."""
        return self.folder / member

    def aggregator(self, *arguments: str | Path) -> str:
        """One `fedddpm-aggregator` command."""
        return run(BIN / "fedddpm-aggregator", *arguments)

    def fedddpm(self, *arguments: str | Path, timeout_s: float = 300) -> str:
        """One `fedddpm` command, of the institutions' installation."""
        return run(self.sdk_bin / "fedddpm", *arguments, timeout_s=timeout_s)

    # --- enrolment ---------------------------------------------------------------------------------------------------

    def make_root_and_aggregator(self) -> None:
        """The root's key, and an aggregator that pins its public part."""
        (self.folder / "root").mkdir(parents=True, exist_ok=True)
        self.aggregator("federation", "root-keygen", "--out", self.root_key)
        self.aggregator("init", "--data", self.data, "--root-key", self.root_public, *self._database())

    def enrol(self) -> None:
        """Keys, a roster signed by the root, and an aggregator that holds it."""
        self.make_root_and_aggregator()
        for member in self.members:
            self.new_identity(member)
        self.sign_roster("create", *self._member_options(self.members))
        self.install_roster()

    def new_identity(self, member: str) -> None:
        """An institution makes its key; only the public part leaves it."""
        self.site(member).mkdir(parents=True, exist_ok=True)
        self.fedddpm("keygen", "--id", member, "--out", self.site(member) / "identity.key")

    def public_key(self, member: str) -> str:
        """The public key an institution sends in (hex)."""
        return str(json.loads((self.site(member) / "identity.key").read_text())["public_key"])

    @property
    def roster(self) -> Path:
        """The newest signed roster."""
        return self.folder / "root" / "roster.json"

    def sign_roster(self, action: str, *options: str | Path) -> None:
        """`federation roster create|add|remove|release`, signed with the root key."""
        common: list[str | Path] = [self.roster, "--root", self.root_key]
        if action == "create":
            server = (self.data / "server.pub").read_text().strip()
            common += ["--federation", self.name, "--server-key", server]
            common += ["--c-max", str(self.c_max), "--n-min", str(self.n_min)]
        self.aggregator("federation", "roster", action, *common, *options)

    def install_roster(self) -> None:
        """Give the signed roster to the aggregator."""
        self.aggregator("federation", "install", self.roster, "--data", self.data, *self._database())

    def _member_options(self, members: Iterable[str]) -> list[str]:
        return [word for member in members for word in ("--member", f"{member}={self.public_key(member)}")]

    def _database(self) -> list[str]:
        return ["--database-url", self.database_url] if self.database_url else []

    # --- aggregator and runs -----------------------------------------------------------------------------------------

    def init_model(self, image_size: int, channels: int, preset: str, seed: int = 1) -> Path:
        """theta_0, made once by the coordinator."""
        out = self.folder / "theta0.safetensors"
        size = ("--image-size", str(image_size), "--channels", str(channels), "--preset", preset)
        self.fedddpm("init-model", *size, "--seed", str(seed), "--out", out)
        return out

    def start_run(self, name: str, method: str, model: Path, **options: object) -> None:
        """The root signs a run and the operator installs it; keyword arguments become options of the two commands.

        ``join_s=5`` -> ``--join-s 5``.
        """
        charter = self.sign_run(name, method, model, **{key: options[key] for key in options if key not in DURATIONS})
        self.install_run(charter, model, **{key: options[key] for key in options if key in DURATIONS})

    def sign_run(self, name: str, method: str, model: Path, **options: object) -> Path:
        """`federation sign-run`, where the root key is; the file of the charter."""
        charter = self.charter(name)
        what = ("--name", name, "--method", method, "--initial-model", model)
        who = ("--root", self.root_key, "--roster", self.roster)
        self.aggregator("federation", "sign-run", charter, *who, *what, *_words(options))
        return charter

    def charter(self, name: str) -> Path:
        """The file of a run's signed charter."""
        return self.folder / "root" / f"charter-{name}.json"

    def install_run(self, charter: Path, model: Path, **durations: object) -> None:
        """`federation install`, where the aggregator is: the run begins."""
        words = [*_words(durations), *self._database()]
        self.aggregator("federation", "install", charter, "--data", self.data, "--initial-model", model, *words)

    def serve(self, wait_s: float = 30) -> None:
        """Start the aggregator's process and wait until it answers."""
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        self.start_process(
            "aggregator", BIN / "fedddpm-aggregator", "serve", "--data", self.data, *address, *self._database()
        )
        deadline = time.monotonic() + wait_s
        while not self.is_ready():
            if self.processes["aggregator"].poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"the aggregator does not answer:\n{self.log('aggregator')}")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether the aggregator answers its readiness check."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def rounds(self) -> list[dict[str, Any]]:
        """`fedddpm-aggregator rounds --json`: one entry for every session of every attempt."""
        return list(json.loads(self.aggregator("rounds", "--data", self.data, "--json", *self._database())))

    # --- institutions ------------------------------------------------------------------------------------------------

    def start_site(self, member: str, data: Path | str, settings: Mapping[str, object] | None = None) -> None:
        """Start `fedddpm participate` for one institution, with its own TOML file."""
        folder = self.site(member)
        config: dict[str, object] = {
            "aggregator_url": self.url,
            "identity": "identity.key",
            "federation_root": self.root_public,
            "data": str(data),
            "state_dir": "state",
            **(settings or {}),
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in config.items() if not isinstance(value, Mapping)]
        for table, values in config.items():
            if isinstance(values, Mapping):
                lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (folder / "site.toml").write_text("\n".join(lines) + "\n")
        self.start_process(member, self.sdk_bin / "fedddpm", "participate", "--config", folder / "site.toml")

    def kill(self, name: str) -> None:
        """SIGKILL: no goodbye, nothing written any more."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def site_rounds(self, member: str) -> list[dict[str, Any]]:
        """What an institution recorded of its finished rounds."""
        path = self.site(member) / "state" / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, name: str) -> str:
        """What a process printed so far."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_sites(self, members: Iterable[str], timeout_s: float) -> None:
        """Wait until the institutions' processes ended well; CommandError with the log of the first that did not."""
        deadline = time.monotonic() + timeout_s
        for member in members:
            try:
                code = self.processes[member].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise CommandError(f"{member} is still running:\n{self.log(member)[-4000:]}") from None
            if code != 0:
                raise CommandError(f"{member} ended with {code}:\n{self.log(member)[-4000:]}")

    def stop(self) -> None:
        """End every process that is still there."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def __enter__(self) -> LocalFederation:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_process(self, name: str, *command: str | Path) -> None:
        """Start a command that writes into the log of its name and ends with the others."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "COLUMNS": "140"}
        with (logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
