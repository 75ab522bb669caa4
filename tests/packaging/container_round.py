"""A round of three institutions whose aggregator and institutions are containers, by what the images run by themselves.

Everything listens on the host's loopback address; the root's key stays outside, as it does in real life.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from local_federation import BIN, free_port, run
from tests.packaging.containers import Engine, wait_until

MEMBERS = ("north", "south", "west")
SITE = """
aggregator_url = "http://127.0.0.1:{port}"
identity = "/state/identity.key"
federation_root = "{root}"
data = "/data/images.npz"
state_dir = "/state"
device = "{device}"

[network]
poll_s = 1.0
"""


class ContainerRound:
    """Folders and volumes of one federation; ``gpu`` are the engine's options that give an institution its GPU."""

    def __init__(
        self, engine: Engine, aggregator: str, institution: str, folder: Path, gpu: tuple[str, ...] = ()
    ) -> None:
        self.engine, self.aggregator, self.institution, self.folder, self.gpu = (
            engine,
            aggregator,
            institution,
            folder,
            gpu,
        )
        self.port = free_port()
        self.data = engine.volume()
        self.states = {member: engine.volume() for member in MEMBERS}
        self.server = ""

    def enrol(self) -> None:
        """The root's key, a data volume that pins it, the institutions' keys and a signed roster; then one run."""
        root = self.folder / "root.key"
        run(BIN / "fedddpm-aggregator", "federation", "root-keygen", "--out", root)
        self.root_public = root.with_suffix(".pub").read_text().strip()
        said = self._operate("init", "--root-key", self.root_public)
        server_key = re.search(r"server public key\s+([0-9a-f]{64})", said)
        assert server_key, said
        members = [word for member in MEMBERS for word in ("--member", f"{member}={self._keygen(member)}")]
        who = ("--federation", "containers", "--server-key", server_key[1], "--c-max", "0", "--n-min", "3")
        create = ("federation", "roster", "create", self.folder / "roster.json")
        run(BIN / "fedddpm-aggregator", *create, "--root", root, *who, *members)
        model = ("--image-size", "8", "--channels", "1", "--preset", "tiny", "--seed", "1")
        run(BIN / "fedddpm", "init-model", *model, "--out", self.folder / "theta0.safetensors")
        self._operate("federation", "install", "/in/roster.json")
        which = ("--name", "images", "--method", "UDEC", "--rounds", "1", "--epochs", "4", "--batch-size", "8")
        what = ("--initial-model", self.folder / "theta0.safetensors", "--roster", self.folder / "roster.json")
        sign = ("federation", "sign-run", self.folder / "charter.json", "--root", root)
        run(BIN / "fedddpm-aggregator", *sign, *what, *which)
        self._operate("federation", "install", "/in/charter.json", "--initial-model", "/in/theta0.safetensors")

    def serve(self) -> None:
        """Start the server by the image's own command, and wait until its own health check is content."""
        address = ("--env=FEDDDPM_AGGREGATOR_HOST=127.0.0.1", f"--env=FEDDDPM_AGGREGATOR_PORT={self.port}")
        options = ("--network=host", f"--volume={self.data}:/data", *address)
        self.server = self.engine.start(self.aggregator, options=options)
        wait_until(self.is_healthy, f"the aggregator's health check:\n{self.engine.logs(self.server)}")

    def is_healthy(self) -> bool:
        """Whether the image's health check says so."""
        return self.engine.succeeds("exec", self.server, "fedddpm-aggregator", "healthcheck")

    def take_part(self, device: str, timeout_s: float = 300) -> None:
        """Start the institutions by the image's own command and wait for their good end."""
        started = {member: self._start_site(member, device) for member in MEMBERS}
        for member, container in started.items():
            code = self.engine.exit_code(container, timeout_s)
            assert code == 0, f"{member} ended with {code}:\n{self.engine.logs(container)[-4000:]}"

    def rounds(self) -> list[dict[str, object]]:
        """What the aggregator keeps of its rounds."""
        said = self.engine.run(self.aggregator, "rounds", "--json", options=(f"--volume={self.data}:/data",))
        return list(json.loads(said))

    def _operate(self, *command: str) -> str:
        volumes = (f"--volume={self.data}:/data", f"--volume={self.folder}:/in:ro")
        self.folder.chmod(0o755)
        for name in ("roster.json", "charter.json", "theta0.safetensors"):
            if (self.folder / name).exists():
                (self.folder / name).chmod(0o644)  # the container is another user
        return self.engine.run(self.aggregator, *command, options=("--network=none", *volumes))

    def _keygen(self, member: str) -> str:
        """Make a key in the institution's volume; its public part (hex)."""
        options = ("--network=none", f"--volume={self.states[member]}:/state")
        said = self.engine.run(
            self.institution, "keygen", "--id", member, "--out", "/state/identity.key", options=options
        )
        found = re.search(r"\b[0-9a-f]{64}\b", said)
        assert found, said
        return found[0]

    def _start_site(self, member: str, device: str) -> str:
        images, site = self.folder / f"{member}.npz", self.folder / f"{member}.toml"
        pixels = np.random.default_rng(len(member)).integers(0, 256, (48, 8, 8), dtype=np.uint8)
        np.savez(images, images=pixels)
        site.write_text(SITE.format(port=self.port, root=self.root_public, device=device))
        for path in (images, site):
            path.chmod(0o644)
        mounts = (f"{self.states[member]}:/state", f"{site}:/etc/fedddpm/site.toml:ro", f"{images}:/data/images.npz:ro")
        volumes = tuple(f"--volume={mount}" for mount in mounts)
        return self.engine.start(self.institution, options=("--network=host", *volumes, *self.gpu))
