"""Which sample comes when: a pure function of the seed, the epoch and the shards' sizes.

Nothing here depends on processes, ranks or what was read before, so a run that resumes, with other
workers or ranks, draws what the unbroken run would have drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor


class Draw(NamedTuple):
    """One sample of an epoch.

    Attributes:
        shard: index of its shard.
        row: index of the sample in the shard.
        seed: for all that is random about preparing it.
    """

    shard: int
    row: int
    seed: int


def derive_seed(*parts: int) -> int:
    """A seed (63 bits) made of numbers; the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@final
class Order:
    """The draws of each epoch.

    A shard of weight 1 is drawn once through in every epoch. One of weight w gives w times its
    size: the samples come in whole passes, each in another order, so that with w = 0.25 four
    epochs draw every sample once.

    Shuffling takes the shards in a random order, a window of them at a time, and mixes all
    samples of the window: reading stays near in place, and so few shards need be at hand.

    Args:
        counts: number of samples in each shard.
        weights: one positive number for each shard; None is 1 for all.
        window: shards that are mixed together; None takes everything as it lies.
        seed: another seed gives another order.

    Raises:
        ValueError: no sample at all, a weight that is not positive, or an empty window.
    """

    def __init__(
        self,
        counts: Sequence[int],
        weights: Sequence[float] | None = None,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        weights = [1.0] * len(counts) if weights is None else weights
        if wrong := [w for w in weights if not 0 < w < math.inf]:
            raise ValueError(f"got the weight {wrong[0]}; wanted a positive number")
        if window is not None and window < 1:
            raise ValueError(f"got a window of {window} shards; wanted at least 1")
        if not any(counts):
            raise ValueError("the shards hold no sample that could be delivered")
        self.counts, self.window, self.seed = list(counts), window, seed
        self._taken = [
            max(1, round(weight * count)) if count else 0
            for weight, count in zip(weights, counts, strict=True)
        ]
        self._len = sum(self._taken)
        self._shards_of = lru_cache(2)(self._arrange)
        self._window_of = lru_cache(2)(self._mix)
        self._pass_of = lru_cache(256)(self._permute)

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return self._len

    @property
    def fingerprint(self) -> str:
        """Changes when any draw would."""
        parts = (self.counts, self._taken, self.window, self.seed)
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    def draws(self, epoch: int, start: int, stop: int) -> list[Draw]:
        """Draws number `start` to `stop` of an epoch."""
        found: list[Draw] = []
        windows, starts = self._shards_of(epoch)
        index = int(torch.searchsorted(starts, start, right=True)) - 1
        while start < stop:
            first, last = int(starts[index]), int(starts[index + 1])
            end = min(stop, last)
            shards, bounds, mixed = self._window_of(epoch, index)
            places = mixed[start - first : end - first]
            owners = torch.searchsorted(bounds, places, right=True) - 1
            inside = places - bounds[owners]
            for position, owner, place in zip(
                range(start, end), owners.tolist(), inside.tolist(), strict=True
            ):
                shard = shards[owner]
                seed = derive_seed(self.seed, epoch, position)
                found.append(Draw(shard, self._row(shard, epoch, place), seed))
            start, index = end, index + 1
        return found

    def _arrange(self, epoch: int) -> tuple[list[list[int]], Tensor]:
        """The shards of each window of an epoch, and where the windows start and end."""
        shards = list(range(len(self.counts)))
        if self.window is not None:
            shards = self._permutation(len(shards), 0, epoch).tolist()
        shards = [shard for shard in shards if self.counts[shard]]
        size = self.window or 1
        windows = [shards[first : first + size] for first in range(0, len(shards), size)]
        sizes = [sum(self._taken[shard] for shard in window) for window in windows]
        return windows, _bounds(sizes)

    def _mix(self, epoch: int, index: int) -> tuple[list[int], Tensor, Tensor]:
        """The shards of a window, where each starts among its draws, and the order of these."""
        shards = self._shards_of(epoch)[0][index]
        bounds = _bounds([self._taken[shard] for shard in shards])
        total = int(bounds[-1])
        if self.window is None:
            return shards, bounds, torch.arange(total)
        return shards, bounds, self._permutation(total, 1, epoch, index)

    def _row(self, shard: int, epoch: int, place: int) -> int:
        """Draw number `place` of a shard in an epoch, as a row: passes follow each other."""
        count, taken = self.counts[shard], self._taken[shard]
        number, row = divmod(epoch * taken + place, count)
        if self.window is None or taken % count == 0:  # whole passes are mixed as windows
            return row
        return int(self._pass_of(shard, number)[row])

    def _permute(self, shard: int, number: int) -> Tensor:
        return self._permutation(self.counts[shard], 2, shard, number)

    def _permutation(self, size: int, *parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *parts))
        return torch.randperm(size, generator=generator)


@final
class Deal:
    """How the draws of an epoch are dealt to steps and ranks, as evenly as can be.

    Every rank takes the same number of steps, every draw goes to one rank once, and no batch is
    empty. Batches hold `batch_size` draws or fewer; one more only where a rank would else have had
    nothing in the last step.

    Args:
        num_draws: draws in an epoch.
        batch_size: largest batch of one rank.
        rank: of this process.
        world_size: number of ranks.

    Raises:
        ValueError: there are fewer draws than ranks, or numbers that make no sense.
    """

    def __init__(self, num_draws: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"got batch_size={batch_size}, rank={rank} of {world_size}; wanted a batch of at "
                "least 1 and a rank below the number of ranks"
            )
        if num_draws < world_size:
            raise ValueError(
                f"{num_draws} samples cannot be dealt to {world_size} ranks; use fewer ranks"
            )
        self.num_draws, self.rank, self.world_size = num_draws, rank, world_size
        self.num_steps = min(-(-num_draws // (batch_size * world_size)), num_draws // world_size)

    def bounds(self, step: int) -> tuple[int, int]:
        """The draws of this rank in a step: first, and one past the last."""
        first, last = (self.num_draws * s // self.num_steps for s in (step, step + 1))
        ends = (first + (last - first) * r // self.world_size for r in (self.rank, self.rank + 1))
        start, stop = ends
        return start, stop


def _bounds(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)
