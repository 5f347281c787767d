"""Training tasks: a model, its losses and its metrics as Lightning modules."""

from fusion.tasks.captioning import CaptionTask
from fusion.tasks.contrastive import ContrastiveTask
from fusion.tasks.recomputed_towers import RecomputedTowers

__all__ = ["CaptionTask", "ContrastiveTask", "RecomputedTowers"]
