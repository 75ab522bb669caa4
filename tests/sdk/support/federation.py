"""A federation for tests: a root key, members with images, and an aggregator process."""

import json
import re
import subprocess
import threading
import time

import numpy as np
import torch
from tests.support.fork_server import start
from tests.support.low_floors import with_low_floors
from typer.testing import CliRunner

from fedddpm import Client, LocalPolicyOptions, NetworkOptions, SamplesOptions
from fedddpm.generation.networks import newest_network
from fedddpm.identity import Identity
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten
from fedddpm.model.unet import UNet
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm_aggregator.cli.app import app as operator

SIZE = 8
FEW = {"min_steps": 1, "min_images": 1}  # as many as these members have
NETWORK = NetworkOptions(poll_s=2, patience_s=60)


def make_network():
    """theta_0 of every test."""
    torch.manual_seed(1)
    return UNet(SIZE, 1, "tiny")


def aggregator(*arguments):
    """An operator's command, in this process."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(operator, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


class Federation:
    """A root key, members with images, and an aggregator process that can be started and killed."""

    def __init__(self, folder, members, c_max=0):
        self.folder, self.data, self.process, self.url = folder, folder / "aggregator", None, ""
        self.members = [f"hospital-{name}" for name in members]
        shown = aggregator("federation", "root-keygen", "--out", folder / "root.key")
        self.root = re.search(r"[0-9a-f]{64}", shown).group()
        shown = aggregator("init", "--data", self.data, "--root-key", self.root)
        server_key = re.search(r"[0-9a-f]{64}", shown).group()
        enrolled = []
        for number, member in enumerate(self.members):
            identity = Identity.generate(member)
            identity.save(folder / f"{member}.key")
            enrolled += ["--member", f"{member}={identity.public_key.hex()}"]
            images = np.random.default_rng(number).integers(0, 256, (12 + number, SIZE, SIZE), dtype=np.uint8)
            np.savez(folder / f"{member}.npz", images=images)
        self.rooted, self.roster = ("--root", folder / "root.key"), folder / "roster.json"
        names = ("--federation", "test", "--server-key", server_key, "--c-max", c_max, "--n-min", 3)
        aggregator("federation", "roster", "create", self.roster, *self.rooted, *names, *enrolled)
        self.install()

    def install(self):
        aggregator("federation", "install", self.roster, "--data", self.data)

    def start_run(self, method, rounds=2, network=None, initial=None, **settings):
        if initial is None:
            save_model(self.folder / "theta0.safetensors", network or make_network())
        options = {"batch_size": 8, "clip_norm": 2.0, "join_s": 60, "chunk_coordinates": 65536, **FEW, **settings}
        flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        model = ("--initial-model", self.folder / "theta0.safetensors")
        named = ("--name", f"run-{method.lower()}", "--method", method, "--rounds", rounds)
        rooted = ("--root-key", self.folder / "root.key")
        aggregator("federation", "start-run", "--data", self.data, *rooted, *named, *model, *flags)

    def serve(self, port=0):
        arguments = ("serve", "--data", self.data, "--port", str(port))
        with (self.folder / "aggregator.log").open("ab") as log:
            self.process = start("fedddpm-aggregator", *arguments, stdout=subprocess.PIPE, stderr=log)
        line = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", line).group()

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def settings(self, member, **changes):
        return {
            "aggregator_url": self.url,
            "identity": self.folder / f"{member}.key",
            "federation_root": self.root,
            "data": self.folder / f"{member}.npz",
            "state_dir": self.folder / f"state-{member}",
            "device": "cpu",
            "network": NETWORK,
            "progress": False,
            "samples": SamplesOptions(count=0),  # pictures are tested by themselves
            **changes,
            "policy": with_low_floors(changes.get("policy")),
        }

    def client(self, member, **changes):
        return Client(**self.settings(member, **changes))

    def plain_client(self, member, policy=None, **changes):
        """With the floors that an institution has by default, and not those of tests."""
        return Client(**{**self.settings(member, **changes), "policy": policy or LocalPolicyOptions()})

    def together(self, rounds=None, members=None, **changes):
        """All members in threads; summaries by member."""
        results, failures = {}, []

        def take_part(member):
            try:
                results[member] = self.client(member, **changes).participate(rounds)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=take_part, args=(member,)) for member in members or self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        if failures:
            raise failures[0]
        return results

    def together_after(self, late, round_, **changes):
        """All to the end of the run, and the others start when ``late``, who was away, has joined round ``round_``.

        Were all to start at once, a slow machine could take longer over it than the join time, and one would miss it.
        """
        first = threading.Thread(target=self.together, args=(None, [late]), kwargs=changes)
        first.start()
        self.wait_for_join(round_)
        self.together(members=[member for member in self.members if member != late], **changes)
        first.join(120)

    def wait_for_join(self, round_):
        """Until a member has joined this round, as the first member sees it."""
        member = self.members[0]
        identity = Identity.load(self.folder / f"{member}.key")
        with Connection(self.url, identity, member, NETWORK) as connection:
            for _ in range(600):
                current = FederationApi(connection).state(0, 0)
                if current.round == round_ and any(session.posted for session in current.sessions.values()):
                    return
                time.sleep(0.1)
        raise AssertionError("nobody joined")

    def rounds_of(self, member):
        """What the member wrote down, one dict a round."""
        path = self.folder / f"state-{member}" / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def shared_vector(self, member, method):
        """The shared parts of the member's newest network."""
        return flatten(newest_network(self.folder / f"state-{member}"), method.shared_parts)
