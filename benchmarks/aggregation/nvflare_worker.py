"""One measurement of NVFlare's homomorphic encryption (TenSEAL's CKKS), in an environment with nvflare[HE].

Its own filters encrypt and decrypt, its own helper sums, and the context has the values of its provisioning. What its
transport does with a ciphertext on the way is a decomposer of its own; only the ciphertext, without the context that
it sends along, is counted here. A client that falls silent costs nothing: there is no mask to remove.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tenseal as ts
from benchmarks.aggregation.cost import Job, PeakMemory, Stopwatch, answer
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

NAME = "w"


def context() -> Any:
    """Keys as HEBuilder of nvflare.lighter.impl.he makes them, on one thread."""
    made = ts.context(
        ts.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    made.generate_relin_keys()
    made.global_scale = 2**40
    return made


def upload(keys: Any, delta: np.ndarray[Any, Any], watch: Stopwatch) -> bytes:
    """One client's ciphertext."""
    encryptor = HEModelEncryptor(weigh_by_local_iter=False)
    encryptor.tenseal_context, encryptor.encrypt_layers = keys, [True]
    with watch.step("encrypt"):
        params, _ = encryptor.encryption({NAME: delta}, FLContext())
        return params[NAME].serialize()  # type: ignore[no-any-return]


def client(keys: Any, delta: np.ndarray[Any, Any]) -> dict[str, object]:
    """The costs of one client, decrypting the sum included: nobody else can."""
    watch = Stopwatch()
    decryptor = HEModelDecryptor()
    decryptor.tenseal_context = keys
    with PeakMemory() as memory:
        ciphertext = upload(keys, delta, watch)
    with watch.step("decrypt"):
        mean = decryptor.decryption({NAME: ciphertext}, {NAME: True}, FLContext())[NAME]
    after_s = watch.seconds.pop("decrypt")
    return {
        "cpu_s": watch.seconds,
        "kernel_s": watch.kernel_s(watch.seconds),
        "after_s": after_s,
        "extra_bytes": memory.extra_bytes,
        "bytes_up": len(ciphertext),
        "error": float(np.square(mean - delta).sum() / np.square(delta).sum()),
    }


def server(keys: Any, delta: np.ndarray[Any, Any], clients: int) -> dict[str, object]:
    """The costs of the sum; every client sends the same ciphertext, and one is held at a time."""
    ciphertext = upload(keys, delta, Stopwatch())
    public = ts.context_from(keys.serialize(save_public_key=False, save_secret_key=False, save_relin_keys=True))
    watch, helper = Stopwatch(), WeightedAggregationHelper(weigh_by_local_iter=False)
    with PeakMemory() as memory:
        for index in range(clients):
            with watch.step("receive"):
                vector = ts.ckks_vector_from(public, ciphertext)
            with watch.step("sum"):
                helper.add({NAME: vector}, 1.0, f"site-{index}", 0)
            del vector
        with watch.step("sum"):
            mean = helper.get_result()[NAME]
        with watch.step("send"):
            sent = mean.serialize()
    return {
        "cpu_s": watch.seconds,
        "kernel_s": watch.kernel_s(watch.seconds),
        "extra_bytes": memory.extra_bytes,
        "bytes_down": len(sent),
    }


def measure(job: Job) -> dict[str, object]:
    """What the job asks for."""
    logging.disable(logging.CRITICAL)
    delta = np.random.default_rng(0).normal(0, 1e-2, job.coordinates).astype(np.float32)
    if job.role == "client":
        return client(context(), delta)
    return server(context(), delta, job.cohort - job.drops)


if __name__ == "__main__":
    answer(measure)
