"""Training tasks: a model, its losses and its metrics as Lightning modules."""

from fusion.tasks.captioning import CaptionTask
from fusion.tasks.contrastive import ContrastiveTask

__all__ = ["CaptionTask", "ContrastiveTask"]
