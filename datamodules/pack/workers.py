"""Processes that judge drafts; one that dies takes its draft with it and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import final

from datamodules.pack.judge import Judged, judge
from datamodules.pack.source import Draft, PackError, Refusal

_DIED = "the process that decoded it died, of a crash or for want of memory"


@final
class Workers:
    """A pool of processes, and beside it a single one for drafts whose pool broke.

    When a process dies, all that were under way in its pool are lost. Each is then judged again
    by the single process: if that dies too, this draft is what it died of.

    Args:
        num_workers: processes of the pool; they start when they are needed.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._pool, self._single = _pool(num_workers), _pool(1)

    def submit(self, draft: Draft) -> Future[Judged | Refusal]:
        """Has a draft judged; see `verdict`."""
        try:
            return self._pool.submit(judge, draft)
        except BrokenProcessPool:
            self._pool = _pool(self._num_workers)
            return self._pool.submit(judge, draft)

    def verdict(self, draft: Draft, submitted: Future[Judged | Refusal]) -> Judged | Refusal:
        """Waits for the verdict on a draft.

        Args:
            draft: the draft.
            submitted: what `submit` gave for it.

        Raises:
            PackError: processes die without a draft, too.
        """
        try:
            return submitted.result()
        except BrokenProcessPool:
            pass
        try:
            return self._single.submit(judge, draft).result()
        except BrokenProcessPool:
            self._single = _pool(1)
            self._refuse_if_none_starts()
            return Refusal(draft.source, "", _DIED)

    def close(self) -> None:
        """Ends the processes; what is under way is not waited for to the end of its queue."""
        self._pool.shutdown(cancel_futures=True)
        self._single.shutdown(cancel_futures=True)

    def _refuse_if_none_starts(self) -> None:
        try:
            self._single.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise PackError(
                "no process can be started that decodes (out of memory, or a script without "
                "`if __name__ == '__main__'`); run the same command again with --workers 1: it "
                "goes on where it stopped"
            ) from error


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the progress bar runs a thread, and libraries hold locks.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever, also when its parent was killed; so it watches it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
