"""How fast samples are read and prepared: each stage by itself, and a loader as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

from datamodules.decoding import decode_sample
from datamodules.loader import ResumableLoader
from datamodules.samples import Prepared, Rejected, Sample, collate
from datamodules.seeding import generators_kept, seed_generators
from datamodules.stream import StreamFetch, labelled


@dataclass(slots=True)
class Timing:
    """Samples in a time.

    Attributes:
        name: what was timed; with the modality where it differs by that: "decode of image".
        seconds: in all.
        num_samples: samples that went through it.
    """

    name: str
    seconds: float = 0.0
    num_samples: int = 0

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.num_samples / max(self.seconds, 1e-9)


@final
class StageTimer:
    """Takes the samples of a loader through its stages, one by one, in this process.

    Reading is timed by the clock, since it may wait for a disk or a server; all else by the
    processor's time, which other programs do not change. Samples that are rejected go no further.

    Args:
        loader: of a `ShardDataModule`.

    Attributes:
        stages: name -> timing, in the order in which samples go through them.

    Raises:
        ValueError: the loader does not stream.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        if not isinstance(loader.fetch, StreamFetch):
            raise ValueError(
                f"got a loader of {type(loader.fetch).__name__}, which has no stages to time; give "
                "one of a ShardDataModule"
            )
        self.fetch: StreamFetch = loader.fetch
        self.order, self.deal = loader.order, loader.deal
        self.stages: dict[str, Timing] = {}

    def run(self, num_batches: int) -> Iterator[int]:
        """Times the first batches of the first epoch; yields the number of each.

        The first is gone through once before, to open shards and load what decoders need.
        """
        with generators_kept():
            self._time_batch(0)
        self.stages.clear()
        for step in range(min(num_batches, self.deal.num_steps)):
            with generators_kept():
                self._time_batch(step)
            yield step

    @property
    def rate(self) -> float:
        """Samples that one core reads and prepares in a second."""
        seconds = sum(timing.seconds for timing in self.stages.values())
        return Timing("", seconds, self.stages["read"].num_samples).rate

    @property
    def slowest(self) -> Timing:
        """The stage that takes the most time."""
        return max(self.stages.values(), key=lambda timing: timing.seconds)

    def _time_batch(self, step: int) -> None:
        prepared: list[Prepared] = []
        for draw in self.order.draws(0, *self.deal.bounds(step)):
            seed_generators(draw.seed)
            began = time.perf_counter()
            sample = self.fetch.reader.read(draw.shard, draw.row)
            self._add("read", time.perf_counter() - began)
            wanted = sample if isinstance(sample, Rejected) else self.fetch.wanted(sample)
            if isinstance(wanted, Sample):
                made = self._prepared(wanted)
                prepared += [] if made is None else [made]
        if prepared:
            self._timed("collate", partial(collate, prepared), len(prepared))

    def _prepared(self, sample: Sample) -> Prepared | None:
        """Decodes and transforms a sample by modality; None if it is rejected."""
        inputs: dict[str, Any] = {}
        for name, value in sample.inputs.items():
            part = replace(sample, inputs={name: value})
            if isinstance(value, bytes):
                part = self._timed(f"decode of {name}", partial(decode_sample, part))
                if isinstance(part, Rejected):
                    return None
            try:
                made = self._timed(f"transform of {name}", partial(self.fetch.prepare, [part]))
            except ValueError:
                return None
            inputs.update(made[0]["inputs"])
        return labelled({"inputs": inputs}, sample)

    def _timed(self, name: str, call: Callable[[], Any], num_samples: int = 1) -> Any:
        began = time.process_time()
        made = call()
        self._add(name, time.process_time() - began, num_samples)
        return made

    def _add(self, name: str, seconds: float, num_samples: int = 1) -> None:
        timing = self.stages.setdefault(name, Timing(name))
        timing.seconds += seconds
        timing.num_samples += num_samples


def time_loader(loader: ResumableLoader, num_batches: int) -> Iterator[Timing]:
    """Times a loader by the clock, epoch after epoch; yields what it has taken after each batch.

    The batches before all workers have delivered one are left out, for they wait for the start.

    Raises:
        ValueError: the data cannot be had, or too much of it is rejected.
    """
    timing = Timing("loader")
    early, began = loader.num_workers + 1, time.perf_counter()
    while num_batches:
        for batch in loader:
            now = time.perf_counter()
            if early:
                early -= 1
            else:
                timing.seconds += now - began
                timing.num_samples += len(batch["keys"])
                num_batches -= 1
                yield timing
            if not num_batches:
                break
            began = time.perf_counter()
