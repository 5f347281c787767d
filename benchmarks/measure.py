"""Timings side by side, what they ran on, and the row that one comparison makes."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

GAIN = 1.1  # ratios nearer to 1 than this are noise


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        repeats: timings of each form, of which the median counts.
        batch: samples in a batch.
        tokens: tokens of a sample.
        sparse_tokens: tokens of the one large sample of sparse updates.
        kappas: norms of the coupling for Anderson.
        scaling: numbers of tokens for the time of one round.
        scaling_batch: samples in that.
    """

    repeats: int
    batch: int
    tokens: int
    sparse_tokens: int
    kappas: Sequence[float]
    scaling: Sequence[int]
    scaling_batch: int


KAPPAS, TOKENS = (0.5, 0.9, 0.99, 1.5), (1024, 4096, 16384, 65536)
TINY = Size(1, 4, 8, 256, KAPPAS[:1], (64, 128), 1)
CPU = Size(5, 32, 64, 16384, KAPPAS, TOKENS, 1)
GPU = Size(11, 512, 128, 131072, KAPPAS, TOKENS, 64)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        technique: what is compared with the plain form.
        case: on what.
        unit: of both figures; less is better.
        plain: the plain form.
        with_it: the technique.
        note: what else belongs to it: accuracy, rounds.
    """

    technique: str
    case: str
    unit: str
    plain: float
    with_it: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times less the technique takes."""
        return self.plain / self.with_it

    @property
    def pays(self) -> str:
        """Yes, no, or costs."""
        return "yes" if self.ratio > GAIN else "costs" if self.ratio < 1 / GAIN else "no"


def compared(
    technique: str,
    case: str,
    forms: Sequence[Callable[[], object]],
    size: Size,
    device: str,
    note: str = "",
) -> Row:
    """The row of two timings: the plain form and the technique."""
    plain, with_it = milliseconds(forms, size.repeats, device)
    return Row(technique, case, "ms", plain, with_it, note)


def milliseconds(forms: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Median time of each form; they run in turn, so that a disturbance hits all alike."""
    taken: list[list[float]] = [[] for _ in forms]
    for repeat in range(repeats + 1):
        for form, times in zip(forms, taken, strict=True):
            _wait(device)
            start = time.perf_counter()
            form()
            _wait(device)
            if repeat:  # the first is to warm up
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def hardware(device: str) -> dict[str, str | int]:
    """What the figures were measured on; no name of a machine."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    found: dict[str, str | int] = {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
