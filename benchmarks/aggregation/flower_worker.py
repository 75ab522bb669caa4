"""One measurement of Flower's SecAgg+, in an environment with flwr: its own client mod and its own server workflow.

Nothing of Flower is written again here. ``secaggplus_mod`` answers every message of ``SecAggPlusWorkflow``, and what
stands between them is a list instead of a network. Left out, in Flower's favour: its transport's serialisation, and the
strategy, which would average as many copies of the opened vector as there are clients.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from benchmarks.aggregation.cost import Job, PeakMemory, Stopwatch, answer
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarray_to_bytes,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common.recorddict_compat import arrayrecord_to_parameters, fitres_to_recorddict
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.task_identity import TaskIdentity

Vector = np.ndarray[Any, np.dtype[np.float32]]
EXAMPLES = 100  # of every client, so that the weighted mean is the mean
THRESHOLD_SHARE = 0.6  # of a secret's shares


class Proxy:
    """As much of a client as the workflow asks for."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class Everybody(FedAvg):  # type: ignore[misc]  # flwr is not in the environment that types are checked in
    """The strategy without its work: all clients train, and the opened vector is the model."""

    def __init__(self, nodes: Iterable[int]) -> None:
        super().__init__()
        self._proxies = [Proxy(node) for node in nodes]

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: object) -> list[Any]:
        nothing = FitIns(Parameters([], "numpy.ndarray"), {})
        return [(proxy, nothing) for proxy in self._proxies]

    def aggregate_fit(self, server_round: int, results: list[Any], failures: list[Any]) -> tuple[Any, dict[str, Any]]:
        return results[0][1].parameters, {}


class Network:
    """Hands messages over. Nodes are 1 to n, the last ``drops`` of them stop before they upload."""

    def __init__(self, job: Job, watch: Stopwatch) -> None:
        self._job, self._watch = job, watch
        self.nodes = range(1, job.cohort + 1)
        self.delta = np.random.default_rng(0).normal(0, 1e-2, job.coordinates).astype(np.float32)
        self._contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in self.nodes}
        self.upload_bytes, self.client_memory = 0, PeakMemory()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every client's answer, those of dropped ones left out."""
        with self._watch.step("clients"):
            # A network would give every client a copy; the mod takes the stage out of it.
            replies = [self._reply(copy.deepcopy(message)) for message in messages]
        return [reply for reply in replies if reply is not None]

    def _reply(self, message: Message) -> Message | None:
        node, stage = message.metadata.dst_node_id, message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if stage in (Stage.SETUP, Stage.SHARE_KEYS):
            with self._watch.step("exchange, client" if node == 1 else "clients"):
                return secaggplus_mod(message, self._contexts[node], None)
        if node > self._job.cohort - self._job.drops:
            return None
        if stage == Stage.UNMASK:
            return secaggplus_mod(message, self._contexts[node], None)
        if self._job.role == "client":
            return self._measured(message) if node == 1 else None
        return self._masked(message, self.delta) if self._job.real_uploads else self._stand_in(message)

    def _masked(self, message: Message, vector: Vector) -> Message:
        trained = self._trained(message, vector)
        return secaggplus_mod(message, self._contexts[message.metadata.dst_node_id], lambda *_: trained)

    def _measured(self, message: Message) -> Message:
        trained, context = self._trained(message, self.delta), self._contexts[message.metadata.dst_node_id]
        with self.client_memory, self._watch.step("mask"):
            reply = secaggplus_mod(message, context, lambda *_: trained)
        self.upload_bytes = sum(map(len, reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]))
        return reply

    def _stand_in(self, message: Message) -> Message:
        """Random words in the shape of an upload: what the server does with them does not depend on them."""
        reply = self._masked(message, self.delta[:1])
        words = np.random.default_rng().integers(2**32, size=len(self.delta))
        configs = reply.content.config_records[RECORD_KEY_CONFIGS]
        configs[Key.MASKED_PARAMETERS] = [configs[Key.MASKED_PARAMETERS][0], ndarray_to_bytes(words)]
        return reply

    @staticmethod
    def _trained(message: Message, vector: Vector) -> Message:
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), EXAMPLES, {})
        return Message(fitres_to_recorddict(result, False), reply_to=message)


def measure(job: Job) -> dict[str, object]:
    """Run the protocol; the costs of one client, or those of the server."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # a client alone is too few for the server, which says so
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 0  # Flower's own runtime would say this
    watch = Stopwatch()
    network, shares = Network(job, watch), job.neighbours + 1
    workflow = SecAggPlusWorkflow(shares, round(THRESHOLD_SHARE * shares))
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=Everybody(network.nodes))
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    state, memory = WorkflowState(), PeakMemory()
    with watch.step("exchange, server"):
        _require(workflow.setup_stage(network, context, state) and workflow.share_keys_stage(network, context, state))
    exchange_s = watch.seconds[f"exchange, {job.role}"]
    if job.role == "client":
        workflow.collect_masked_vectors_stage(network, context, state)
        return {
            "cpu_s": {"mask": watch.seconds["mask"]},
            "kernel_s": watch.kernel["mask"],
            "exchange_s": exchange_s,
            "extra_bytes": network.client_memory.extra_bytes,
            "bytes_up": network.upload_bytes,
        }
    watch.seconds.clear()
    watch.kernel.clear()
    with memory:
        with watch.step("sum"):
            _require(workflow.collect_masked_vectors_stage(network, context, state))
        with watch.step("unmask"):
            _require(workflow.unmask_stage(network, context, state))
    del watch.seconds["clients"]
    opened = arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True)
    mean = parameters_to_ndarrays(opened)[0]
    error = float(np.square(mean - network.delta).sum() / np.square(network.delta).sum())
    return {
        "cpu_s": watch.seconds,
        "kernel_s": watch.kernel_s(watch.seconds),
        "exchange_s": exchange_s,
        "extra_bytes": memory.extra_bytes - mean.nbytes,
        "bytes_down": len(opened.tensors[0]),
        "error": error if job.real_uploads else None,
    }


def _require(done: bool) -> None:
    if not done:
        raise SystemExit("Flower's workflow stopped: too few clients for its threshold")


if __name__ == "__main__":
    answer(measure)
