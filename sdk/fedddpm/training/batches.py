"""The way of images to the device: they lie there for the whole training, or come batch by batch ahead of need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedddpm.data.image_set import ImageSet, to_floats

_RESIDENT_SHARE = 0.5  # of the card's free memory; activations need the rest


class Batch(NamedTuple):
    """What one step trains on, on the device."""

    x_0: Tensor  # float32 [B, C, H, W] in [-1, 1], channels_last
    labels: Tensor | None  # int64 [B]; None where the network has no classes


class Batches:
    """Batches of ``data`` in random order.

    On a card the uint8 images are copied once where they take less than half of its free memory: 47 MB for
    Fashion-MNIST. Otherwise the next batch travels from page-locked memory while the card computes.
    """

    def __init__(self, data: ImageSet, batch_size: int, device: torch.device, *, labelled: bool) -> None:
        self._batch_size, self._device = batch_size, device
        self.resident = device.type == "cpu" or data.images.nbytes < _RESIDENT_SHARE * _free_bytes(device)
        home = device if self.resident else torch.device("cpu")
        self.images = data.images.to(home)
        self.labels = data.labels.to(home) if labelled and data.labels is not None else None

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """All images once, in the order that ``generator`` (on the CPU) decides; the last batch may be smaller.

        ``start`` leaves out the first batches.
        """
        order = torch.randperm(len(self.images), generator=generator)
        size = self._batch_size
        chosen = (order[first : first + size] for first in range(start * size, len(order), size))
        return self._at_hand(chosen) if self.resident else self._ahead(chosen)

    def _at_hand(self, chosen: Iterator[Tensor]) -> Iterator[Batch]:
        for indices in chosen:
            at = indices.to(self.images.device)
            yield self._batch(self.images[at], None if self.labels is None else self.labels[at])

    def _ahead(self, chosen: Iterator[Tensor]) -> Iterator[Batch]:
        """Copy a batch on a stream of its own while the one before is trained on."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch
        following = self._send(next(chosen, None), stream)
        while following is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(stream)
            images, labels = following
            images.record_stream(now)  # the memory must not be used again before the step has read it
            if labels is not None:
                labels.record_stream(now)
            following = self._send(next(chosen, None), stream)
            yield self._batch(images, labels)

    def _send(self, indices: Tensor | None, stream: torch.cuda.Stream) -> tuple[Tensor, Tensor | None] | None:
        if indices is None:
            return None
        images = _pinned_rows(self.images, indices)
        labels = None if self.labels is None else _pinned_rows(self.labels, indices)
        with torch.cuda.stream(stream):
            return images.to(self._device, non_blocking=True), (
                None if labels is None else labels.to(self._device, non_blocking=True)
            )

    def _batch(self, images: Tensor, labels: Tensor | None) -> Batch:
        return Batch(to_floats(images, self._device), labels)


def _pinned_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Gather rows into page-locked memory, which torch keeps until the copy out of it is done."""
    gathered = torch.empty((len(indices), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
    return torch.index_select(rows, 0, indices, out=gathered)


def _free_bytes(device: torch.device) -> int:
    """What the driver has to give, and what torch holds back from earlier trainings."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
