"""Batches that resume exactly: the same ones, in the same order, with any number of workers."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datamodules.ledger import Ledger, Place
from datamodules.order import Deal, Draw, Order
from datamodules.samples import Rejected
from datamodules.seeding import generators_kept

Batch = dict[str, Any]


class Delivery(NamedTuple):
    """What became of the draws of one step.

    Attributes:
        batch: the collated samples; None if all were rejected.
        num_delivered: samples in it.
        rejected: the other samples.
        failure: why reading cannot go on at all, in one sentence; "" if it can.
    """

    batch: Batch | None
    num_delivered: int
    rejected: Sequence[Rejected] = ()
    failure: str = ""


class Fetch(ABC):
    """Gets the samples of draws; runs in worker processes.

    Attributes:
        fingerprint: changes with the data: a run resumes on the same data only.
    """

    fingerprint: str = ""

    @abstractmethod
    def __call__(self, draws: Sequence[Draw]) -> Delivery:
        """Reads, prepares and collates the samples of one batch; never raises for bad data."""


@final
class ResumableLoader:
    """Batches of an epoch, dealt to ranks, with a state of a few numbers.

    Which draws a batch holds follows from the epoch and the step alone, and workers are only told
    what to fetch, so nothing is lost that they had fetched in advance when a run was killed.
    Iterating goes through one epoch; the next iteration goes on with the next epoch, or right
    after `load_state_dict` where that state was taken. The state counts the batches that were
    handed out: take it before asking for another one.

    Args:
        fetch: gets the samples.
        order: of the draws.
        batch_size: largest batch of this rank; see `Deal`.
        num_workers: processes that fetch; 0 fetches in this one.
        ranks: rank of this process, and number of ranks.
        ledger: account of what is read; None keeps one in memory.
        repeat_empty: of a batch whose samples were all rejected, deliver the batch before again,
            so that ranks, and schedules that count steps, stay in step; otherwise skip it.

    Attributes:
        epoch, step: the next batch is number `step` of `epoch`.

    Raises:
        ValueError: see `Deal`.
    """

    def __init__(
        self,
        fetch: Fetch,
        order: Order,
        batch_size: int,
        num_workers: int = 0,
        ranks: tuple[int, int] = (0, 1),
        ledger: Ledger | None = None,
        repeat_empty: bool = False,
    ) -> None:
        self.fetch, self.order, self.ranks = fetch, order, ranks
        self.num_workers = num_workers
        self.deal = Deal(len(order), batch_size, *ranks)
        self.ledger = Ledger() if ledger is None else ledger
        self.repeat_empty = repeat_empty
        self.epoch = self.step = 0
        self._resumed = False
        self._steps = _Steps(order, self.deal)
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        return self.deal.num_steps

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of an epoch, or what is left of it.

        Raises:
            ValueError: the data cannot be had, or too much of it is rejected.
        """
        if self.step and not self._resumed:
            self._begin_next_epoch()
        self.ledger.begin()
        last: Batch | None = None
        for delivery in self._deliveries():
            place = Place(self.epoch, self.step)
            if delivery.failure:
                raise ValueError(delivery.failure)
            self.step, self._resumed = self.step + 1, False
            self.ledger.record(place, delivery.num_delivered, delivery.rejected, len(self.order))
            batch = delivery.batch
            if batch is None and self.repeat_empty:
                if last is None:
                    raise ValueError(
                        f"every sample of the first batch was rejected: {delivery.rejected[0]}"
                    )
                batch, self.ledger.num_repeated = last, self.ledger.num_repeated + 1
            if batch is not None:
                last = batch
                yield batch

    def _begin_next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0

    def _deliveries(self) -> Iterator[Delivery]:
        """What workers fetch."""
        self._steps.epoch, self._steps.first = self.epoch, self.step
        if self._loader is None:
            self._loader = DataLoader(
                _Fetched(self.fetch),
                batch_size=None,
                sampler=self._steps,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                collate_fn=_as_is,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_outlive,
            )
        with generators_kept():  # a DataLoader draws a seed for its workers
            deliveries = iter(self._loader)
        yield from deliveries

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: plain numbers and strings."""
        done = self.step >= len(self)
        return {
            "epoch": self.epoch + done,
            "step": 0 if done else self.step,
            "num_steps": len(self),
            "global_batch": self.global_batch,
            "data": self._data,
        }

    @property
    def global_batch(self) -> int:
        """Largest number of draws of all ranks in a step."""
        return -(-self.deal.num_draws // self.deal.num_steps)

    @property
    def _data(self) -> str:
        return f"{self.order.fingerprint} {self.fetch.fingerprint}".strip()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where a state was taken; the next iteration starts there.

        The number of workers may differ, and that of ranks if all their batches together are as
        large as they were.

        Raises:
            ValueError: the state is of other data, another seed, or another batch size.
        """
        if state["data"] != self._data:
            raise ValueError(
                "the checkpoint was made with other shards, weights, window or seed than these, so "
                "the samples left in its epoch are not known; resume with the same, or start anew "
                "from its weights"
            )
        if state["num_steps"] != len(self):
            raise ValueError(
                f"the checkpoint was made with {state['num_steps']} steps of up to "
                f"{state['global_batch']} samples in an epoch, this run has {len(self)} of up to "
                f"{self.global_batch}; keep batch_size times the number of ranks as it was"
            )
        self.epoch, self.step, self._resumed = state["epoch"], state["step"], True
        self.ledger.rewind(Place(self.epoch, self.step))


class _Steps:
    """The draws of each step that is left, told to the workers as they get free."""

    def __init__(self, order: Order, deal: Deal) -> None:
        self.order, self.deal = order, deal
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.deal.num_steps - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.deal.num_steps):
            yield self.order.draws(self.epoch, *self.deal.bounds(step))


class _Fetched(Dataset):
    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch

    def __getitem__(self, draws: list[Draw]) -> Delivery:
        if get_worker_info() is not None:
            return self.fetch(draws)
        with generators_kept():
            return self.fetch(draws)


def _as_is(delivery: Any) -> Any:
    return delivery


def _outlive(worker: int) -> None:
    """Has a worker end by its parent's SIGTERM alone.

    Some schedulers send one to all processes of a run; the parent needs its workers until it has
    saved. Where a process cannot tell who sent a signal (macOS) nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of all threads to come, too
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
