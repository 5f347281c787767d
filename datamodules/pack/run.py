"""Packs a source into shards: plan, judge in parallel, write, publish."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from datamodules.manifest import ShardEntry, describe_shard
from datamodules.pack.cut import Cut
from datamodules.pack.source import PackError, Plan, Source
from datamodules.pack.stage import REJECTED, Mark, OtherRun, Stage
from datamodules.pack.tally import Accepted, Tally
from datamodules.pack.verdicts import judge_all
from datamodules.writer import write_shard

T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished pack.

    Attributes:
        shards: what its manifest lists.
        num_read: samples of the source; each was either packed or rejected.
        num_rejected: lines of `rejected.jsonl`.
        num_resumed: shards that an earlier run had finished.
    """

    shards: tuple[ShardEntry, ...]
    num_read: int
    num_rejected: int
    num_resumed: int

    @property
    def num_samples(self) -> int:
        """Samples packed."""
        return sum(shard.samples for shard in self.shards)


def pack(
    source: Source, out: Path, cut: Cut, num_workers: int = 1, overwrite: bool = False
) -> Packed:
    """Packs a source, showing progress; a run that was killed is gone on with.

    The bytes depend on the source and `cut` alone, not on the number of workers nor on kills.

    Args:
        source: the samples.
        out: folder for `shard-000000.tar`, ..., `manifest.json` and `rejected.jsonl`; they appear
            once all is done.
        cut: where shards end.
        num_workers: processes that decode; 1 decodes in this one. With more, a file that crashes
            its decoder is rejected like any other.
        overwrite: replace a finished pack, or an unfinished one of other settings.

    Raises:
        PackError: nothing could be packed, the disk is full, something is there already, another
            run is writing there, or the source changed since the run was begun.
    """
    if num_workers < 1:
        raise PackError(f"got {num_workers} workers; give at least 1")
    plan = source.plan()
    stage = Stage(out, repr(cut))
    with _full_disk_told(out), stage.held():
        if not overwrite:
            stage.refuse_finished()
        try:
            return _run(plan, stage, cut, num_workers)
        except OtherRun:
            if not overwrite:
                raise
            stage.clear()
            return _run(source.plan(), stage, cut, num_workers)


def _run(plan: Plan, stage: Stage, cut: Cut, num_workers: int) -> Packed:
    shards, mark = stage.resume()
    num_resumed = len(shards)
    with stage.rejected.open("ab") as rejected:
        tally = Tally(rejected)
        if mark is not None:
            tally.skip(islice(plan.items, mark.num_read))
            if tally.mark() != mark:
                raise OtherRun(
                    f"{stage.out} holds an unfinished pack of another source, or the source has "
                    "changed; give --overwrite to start over"
                )
            for entry in shards:
                tally.recall(stage.samples(entry))
        items = _tracked(plan.items, tally.num_read, plan.num_drafts)
        with closing(judge_all(items, num_workers)) as verdicts:
            _write(tally, tally.accept(verdicts), stage, cut, plan.num_drafts, shards)
    return _finish(stage, shards, tally.num_read, num_resumed)


def _write(
    tally: Tally,
    samples: Iterator[Accepted],
    stage: Stage,
    cut: Cut,
    num_drafts: int,
    shards: list[ShardEntry],
) -> None:
    """Writes shard after shard, each with its line in the journal; adds them to `shards`."""
    following = next(samples, None)
    while following is not None:
        left: list[Accepted] = []
        path = stage.shard(len(shards))
        part = _shard(following, samples, cut, num_drafts, left)
        count = write_shard(((sample.key, sample.members) for sample in part), path)
        entry, refused = describe_shard(path)
        if refused or entry.samples != count:
            raise PackError(f"{path} does not hold what was written; check the disk")
        following = left[0] if left else None
        mark: Mark = following.before if following else tally.mark()
        stage.finish_shard(entry, mark)
        shards.append(entry)


def _shard(
    first: Accepted, rest: Iterator[Accepted], cut: Cut, num_drafts: int, left: list[Accepted]
) -> Iterator[Accepted]:
    """The samples of one shard; the one that begins the next goes to `left`."""
    num_bytes = 0
    for sample in chain([first], rest):
        num_bytes += sample.num_bytes
        begins = cut.begins_shard(first.index, sample.index, num_bytes, num_drafts)
        if begins and sample is not first:
            left.append(sample)
            return
        yield sample


def _finish(stage: Stage, shards: list[ShardEntry], num_read: int, num_resumed: int) -> Packed:
    with stage.rejected.open("rb") as file:
        num_rejected = sum(1 for _ in file)
    packed = Packed(tuple(shards), num_read, num_rejected, num_resumed)
    if num_read != packed.num_samples + num_rejected:
        raise PackError(
            f"read {num_read} samples, but packed {packed.num_samples} and rejected "
            f"{num_rejected}; {stage.folder} was changed meanwhile: remove it and start over"
        )
    if not shards:
        stage.rejected.replace(stage.out / REJECTED)
        stage.clear()
        raise PackError(
            f"all {num_read} samples were rejected; {stage.out / REJECTED} says why for each"
        )
    stage.publish(shards)
    return packed


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PackError(
                f"the disk of {out} is full; free some space and run the same command again: it "
                "goes on where it stopped"
            ) from error
        raise


def _tracked(items: Iterator[T], num_done: int, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("Packing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=max(total, num_done), completed=num_done)
        for item in items:
            yield item
            progress.advance(task)
