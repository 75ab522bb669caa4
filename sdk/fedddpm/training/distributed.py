"""Several processes of one institution train together, one on each card.

    torchrun --nproc-per-node 4 -m fedddpm participate --config site.toml

Rank 0 is the institution: it alone speaks to the aggregator, holds identity and state folder, and masks. The others
open the same images, wait for what it announces, and train their rows of every batch. Words go through the launcher's
key-value store as JSON, numbers through all-reduce and broadcast; nothing is unpickled.

No rank hangs for ever. Whoever ends leaves a last word in the store and closes its connections, which breaks what the
others wait for; torchrun ends them too when one of them fails; and no exchange may take longer than ``_STUCK``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import ConfigError, DataError, TrainingError
from fedddpm.model.unet import UNet
from fedddpm.training.checkpoint import fingerprint
from fedddpm.training.ranks import ALONE, RankShare
from fedddpm.training.settings import TrainSettings
from fedddpm.training.trainer import Trainer
from fedddpm_protocol.agreement.model_layout import Architecture

_STUCK = timedelta(minutes=30)  # longer than any rank works between two exchanges
_LOOK_EVERY_S = 0.1
_FAREWELL_S = 5.0  # for the other ranks to read the last word
_IMAGES, _JOB, _END, _FAILED, _LEFT = "images", "job/", "end", "failed", "left"


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, as the launcher says."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Place:
        """Read torchrun's environment; rank 0 of 1 without it.

        Raises:
            ConfigError: the variables make no sense.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        try:
            place = cls(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"of {', '.join(names)} only some are set", "Start all ranks with torchrun") from error
        return place

    @property
    def leads(self) -> bool:
        """Whether this is the process that the aggregator and the state folder see."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device for this rank where the setting is ``name``: each its own card.

        Raises:
            ConfigError: one card was named for all.
        """
        if self.world == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise ConfigError(
                f"{self.world} ranks cannot share the device {name!r}", "Use device='auto', 'cuda' or 'cpu'"
            )
        return f"cuda:{self.local_rank}"


@dataclass(frozen=True)
class DistributedShare(RankShare):
    """The share of one rank among several, on ``device``; made by :func:`open_distributed`."""

    store: Store = field(kw_only=True)
    device: torch.device = field(kw_only=True)
    _announced: Iterator[int] = field(default_factory=count, kw_only=True)

    def announce(self, job: str) -> None:
        """Wake the other ranks with ``job``; :meth:`jobs` gives it to them."""
        if self.leads:
            self.store.set(f"{_JOB}{next(self._announced)}", job)

    def jobs(self) -> Iterator[str]:
        """What rank 0 announces, until it has ended; may wait for days, which no collective operation could."""
        for number in count():
            while not self.store.check([f"{_JOB}{number}"]):
                if self.store.check([_END]):
                    return
                time.sleep(_LOOK_EVERY_S)
            yield str(self.store.get(f"{_JOB}{number}"), "utf-8")

    def wrap(self, model: nn.Module) -> Callable[..., Tensor]:
        """DistributedDataParallel around ``model``; an empty slice runs one blank image that counts for nothing."""
        # Every rank holds the same weights already, and there are no buffers.
        cards = [self.device] if self.device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel(model, cards, init_sync=False, broadcast_buffers=False)

        def network(x_t: Tensor, *others: Tensor | None) -> Tensor:
            if len(x_t):
                out: Tensor = parallel(x_t, *others)
                return out
            blank = (None if tensor is None else tensor.new_zeros((1, *tensor.shape[1:])) for tensor in (x_t, *others))
            nothing: Tensor = parallel(*blank)[:0]
            return nothing

        return network

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors by those of rank 0, in place."""
        for tensor in tensors:
            plain = tensor.detach().contiguous()
            dist.broadcast(plain, src=0)
            tensor.copy_(plain)

    def agree(self, flag: bool) -> bool:
        """What rank 0 says, on every rank."""
        word = torch.tensor(int(flag), device=self.device)
        dist.broadcast(word, src=0)
        return bool(word)

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all ranks, detached."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total


def follow(share: RankShare, images: ImageSet, device: torch.device) -> None:
    """Train what rank 0 announces, until it has ended; for all other ranks."""
    for text in share.jobs():
        job = json.loads(text)
        shape = {**job["architecture"], "multipliers": tuple(job["architecture"]["multipliers"])}
        model = UNet.from_architecture(Architecture(**shape))
        Trainer(model, images, device, TrainSettings(**job["settings"]), job["seed"], share=share).train()


@contextmanager
def open_distributed(place: Place, device: torch.device, images: ImageSet) -> Iterator[RankShare]:
    """This rank's share, while all ranks are inside; ``ALONE`` where there is only one.

    Raises:
        TrainingError: another rank failed or is gone. Ranks above 0 end quietly where rank 0 said why it ended.
        DataError: this rank has opened other ``images`` than rank 0.
    """
    if place.world == 1:
        yield ALONE
        return
    share = _meet(place, device)
    try:
        _require_same(share, images)
        yield share
    except RuntimeError as error:  # out of torch, whose exchanges break when a rank has gone; our own errors are none
        heard = _hear(share)
        _leave(share, heard or str(error), broken=True)
        if heard is None or share.leads:
            raise TrainingError(
                heard or f"rank {share.rank} lost the others ({error})",
                "Look for the first error among the ranks; the same command goes on from the last checkpoint",
            ) from error
    except BaseException as error:
        _leave(share, f"rank {share.rank} ended: {error or type(error).__name__}", broken=True)
        raise
    else:
        _leave(share, "", broken=False)


def _meet(place: Place, device: torch.device) -> DistributedShare:
    """Wait for the other ranks, at the address in the environment."""
    store, rank, world = next(iter(rendezvous("env://", place.rank, place.world, timeout=_STUCK)))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("exchange", store),
        rank=rank,
        world_size=world,
        timeout=_STUCK,
        device_id=device if device.type == "cuda" else None,
    )
    return DistributedShare(rank, world, store=PrefixStore("crew", store), device=device)


def _require_same(share: DistributedShare, images: ImageSet) -> None:
    labels = () if images.labels is None else (images.labels,)
    digest = fingerprint((), (images.images, *labels))
    if share.leads:
        share.store.set(_IMAGES, digest)
    elif str(share.store.get(_IMAGES), "utf-8") != digest:
        raise DataError(
            f"rank {share.rank} has opened other images than rank 0",
            "Give all ranks the same settings and the same files",
        )


def _hear(share: DistributedShare) -> str | None:
    """The last word of a rank that ended, if one comes within seconds."""
    with suppress(RuntimeError):  # the store may be gone as well
        for _ in range(int(_FAREWELL_S / _LOOK_EVERY_S)):
            for key in (_FAILED, _END):
                if share.store.check([key]):
                    return str(share.store.get(key), "utf-8")
            time.sleep(_LOOK_EVERY_S)
    return None


def _leave(share: DistributedShare, word: str, *, broken: bool) -> None:
    """Leave a last word, break what others wait for, and give them time to read it."""
    with suppress(RuntimeError):
        if share.leads:
            share.store.set(_END, word)
        elif broken:
            share.store.set(_FAILED, word)
    if (
        not broken or share.device.type == "cpu"
    ):  # NCCL would wait for what is under way; it breaks as this process ends
        with suppress(RuntimeError):
            dist.destroy_process_group()
    with suppress(RuntimeError):
        share.store.add(_LEFT, 1)
        last = time.monotonic() + _FAREWELL_S
        while share.leads and share.store.add(_LEFT, 0) < share.world and time.monotonic() < last:
            time.sleep(_LOOK_EVERY_S)
