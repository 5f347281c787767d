"""How shards are read: the settings that every data module shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from datamodules.samples import MEMBERS, Members


@dataclass(frozen=True)
class Reading:
    """What is read of a sample, and what is done about samples that cannot be.

    Args:
        members: modality -> extensions in order of preference; None: `datamodules.MEMBERS`.
        required: modalities without which a sample is rejected.
        max_rejected: share of the samples that may be rejected before the run is stopped.
        cache: folder for shards that are remote or packed.
    """

    members: dict[str, list[str]] | None = None
    required: list[str] = field(default_factory=list)
    max_rejected: float = 0.05
    cache: str = ".cache/shards"

    @property
    def extensions(self) -> Members:
        """Modality -> extensions that carry it."""
        return self.members or MEMBERS


def weight_of(name: str, weights: dict[str, float] | None) -> float:
    """The weight of a shard: of the first prefix that its file name starts with, else 1."""
    found = (weight for prefix, weight in (weights or {}).items() if name.startswith(prefix))
    return next(found, 1.0)
