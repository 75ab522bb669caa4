"""What one process does of a training that several share; ``ALONE`` does all of it.

All ranks draw the same batch, timesteps and noise by the same seed, and each computes its rows. The result therefore
does not depend on their number, up to the rounding of sums in another order. A training asks its share, in this order:

    share.announce(job)            # rank 0 says what is trained; the others have been made from these words
    share.spread(tensors)          # the weights, and what else rank 0 read from a checkpoint
    network = share.wrap(model)    # once, before the first step: averages gradients in backward
    eps = network(share.slice(x_t), share.slice(t))
    loss = share.scaled(huber_sum(eps, share.slice(noise)), noise.numel())
    loss.backward()
    whole = share.total(loss) / share.world
    stop = share.agree(out_of_time)

The order matters: all but ``slice`` and ``scaled`` wait for the other ranks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class RankShare:
    """One process alone; :func:`fedddpm.training.distributed.open_distributed` makes the shares of several."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes checkpoints and shows progress."""
        return self.rank == 0

    def slice(self, rows: Tensor) -> Tensor:
        """This rank's rows of a tensor [B, ...] that all ranks hold; none where there are fewer rows than ranks."""
        return rows[len(rows) * self.rank // self.world : len(rows) * (self.rank + 1) // self.world]

    def scaled(self, loss_sum: Tensor, global_count: int) -> Tensor:
        """The loss to call backward on, from this rank's sum over its rows and the number of terms of all ranks.

        Gradients are averaged over the ranks, hence the factor ``world``: their average is the gradient of
        ``sum over all ranks / global_count``.
        """
        return loss_sum * (self.world / global_count)

    def announce(self, job: str) -> None:
        """Rank 0 tells the others what to train; nothing to do where there are none."""

    def jobs(self) -> Iterator[str]:
        """What rank 0 announces, on the other ranks, until it has ended."""
        return iter(())

    def wrap(self, model: nn.Module) -> Callable[..., Tensor]:
        """``model``, with gradients that backward averages over the ranks; takes empty slices too."""
        return model

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors by those of rank 0, in place."""

    def agree(self, flag: bool) -> bool:
        """What rank 0 says, on every rank."""
        return flag

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all ranks, detached; for losses from :meth:`scaled`, ``world`` times the mean."""
        return value.detach()


ALONE = RankShare()
