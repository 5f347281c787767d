"""Random numbers that depend on the sample, not on the process that prepares it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_generators(seed: int) -> None:
    """Seeds the global CPU generators of torch, numpy and Python."""
    import numpy as np

    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global CPU generators back as they were."""
    import numpy as np

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
