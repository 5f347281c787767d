"""Judges drafts in this process or in several, and gives the verdicts in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing

from datamodules.pack.judge import Judged, judge
from datamodules.pack.source import Draft, Refusal
from datamodules.pack.workers import Workers

_AHEAD = 4  # drafts under way for each worker


def judge_all(
    items: Iterable[Draft | Refusal], num_workers: int
) -> Generator[tuple[Draft | Refusal, Judged | Refusal], None, None]:
    """Judges items in their order, a few ahead of what is asked for.

    Args:
        items: what is refused already passes through.
        num_workers: processes; 1 judges in this one, which a decoder that crashes then ends.

    Raises:
        PackError: no process can be started.
    """
    if num_workers == 1:
        for item in items:
            yield item, judge(item) if isinstance(item, Draft) else item
        return
    ahead: deque[tuple[Draft | Refusal, Future[Judged | Refusal] | None]] = deque()
    with closing(Workers(num_workers)) as workers:
        for item in items:
            ahead.append((item, workers.submit(item) if isinstance(item, Draft) else None))
            if len(ahead) > _AHEAD * num_workers:
                yield _settled(workers, *ahead.popleft())
        while ahead:
            yield _settled(workers, *ahead.popleft())


def _settled(
    workers: Workers, item: Draft | Refusal, under_way: Future[Judged | Refusal] | None
) -> tuple[Draft | Refusal, Judged | Refusal]:
    if isinstance(item, Refusal):
        return item, item
    assert under_way is not None
    return item, workers.verdict(item, under_way)
