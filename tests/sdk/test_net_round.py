"""Whole rounds: real institutions, a real aggregator process, every method; kills and second clients."""

import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from fedddpm import Client, LocalPolicyOptions, NetworkOptions
from fedddpm.errors import PolicyError, StateError
from fedddpm.identity import Identity
from fedddpm.partition import flatten, manifest, save_model
from fedddpm.problems import NotEnrolledError, SecondClientError
from fedddpm.sampling import newest_network
from fedddpm.state import StateDir
from fedddpm.traffic import plan_round
from fedddpm.unet import UNet

from fedddpm_protocol.methods import MODEL_PARTS, Method
from fedddpm_protocol.spec import coordinates

AGGREGATOR = [sys.executable, "-m", "fedddpm_aggregator.cli"]
SIZE = 8
NETWORK = NetworkOptions(poll_s=2, patience_s=30)


def aggregator(*arguments):
    result = subprocess.run([*AGGREGATOR, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
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
        root, roster = ("--root", folder / "root.key"), folder / "roster.json"
        names = ("--federation", "test", "--server-key", server_key, "--c-max", c_max, "--n-min", 3)
        aggregator("federation", "roster", "create", roster, *root, *names, *enrolled)
        aggregator("federation", "install", roster, "--data", self.data)

    def start_run(self, method, rounds=2, **settings):
        torch.manual_seed(1)
        save_model(self.folder / "theta0.safetensors", UNet(SIZE, 1, "tiny"))
        options = {"batch_size": 8, "clip_norm": 2.0, "join_s": 60, "chunk_coordinates": 65536, **settings}
        flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        model = ("--initial-model", self.folder / "theta0.safetensors")
        named = ("--name", f"run-{method.lower()}", "--method", method, "--rounds", rounds)
        aggregator("federation", "start-run", "--data", self.data, *named, *model, *flags)

    def serve(self, port=0):
        command = [*AGGREGATOR, "serve", "--data", str(self.data), "--port", str(port)]
        with (self.folder / "aggregator.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
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
            **changes,
        }

    def client(self, member, **changes):
        return Client(**self.settings(member, **changes))

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


@pytest.fixture
def federation(tmp_path):
    torch.set_num_threads(1)
    made = []

    def make(members="abc", **options):
        made.append(Federation(tmp_path, members, **options))
        made[-1].serve()
        return made[-1]

    yield make
    for one in made:
        one.kill()


def shared_vector(federation, member, method):
    model = newest_network(federation.folder / f"state-{member}")
    return flatten(model, method.shared_parts)


def check_traffic(federation, method, summaries):
    """The counters of what really went over the line are the plan, parameter by parameter."""
    sizes = {part: coordinates(manifest(UNet(SIZE, 1, "tiny"), (part,))) for part in MODEL_PARTS}
    spec_hashes = [json.loads(line)["spec_hash"] for line in rounds_of(federation, federation.members[0])]
    for round_, spec_hash in enumerate(spec_hashes):
        plan = plan_round(method, sizes, bytes.fromhex(spec_hash), federation.members, first=round_ == 0)
        for member, rounds in summaries.items():
            moved, planned = rounds[round_].traffic, plan[member]
            assert moved.parameters_up == planned.up
            assert moved.parameters_down == planned.first_contact + planned.result
            assert moved.payload_up >= 4 * moved.parameters_up
            assert moved.bytes_up > moved.payload_up
            assert moved.bytes_down > moved.payload_down


def rounds_of(federation, member):
    return (federation.folder / f"state-{member}" / "rounds.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("method", "members", "weighting"),
    [
        (Method.UDEC, "abc", "hidden"),
        (Method.FULL, "abc", "disclosed"),
        (Method.ULATDEC, "abc", "equal"),
        (Method.USPLIT, "abcdef", "equal"),
    ],
)
def test_two_rounds_end_with_one_model_everywhere(federation, method, members, weighting):
    fed = federation(members)
    fed.start_run(method, weighting=weighting)
    summaries = fed.together()
    for rounds in summaries.values():
        assert [summary.round for summary in rounds] == [0, 1]
        assert all(summary.took_part and summary.attempt == 0 for summary in rounds)
        assert all(summary.survivors == tuple(fed.members) for summary in rounds)
        assert all(summary.mean_loss_before > 0 for summary in rounds)
    vectors = [shared_vector(fed, member, method) for member in fed.members]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
    torch.manual_seed(1)
    assert not np.array_equal(vectors[0], flatten(UNet(SIZE, 1, "tiny"), method.shared_parts))
    check_traffic(fed, method, summaries)
