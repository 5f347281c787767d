"""torch.compile for towers and fusion blocks."""

from collections.abc import Iterator
from typing import final

from lightning import Callback, LightningModule, Trainer
from torch import nn

from fusion.model import FusionModel


@final
class Compiled(Callback):
    """Compiles the layers of towers, and fusion blocks, in place; names in checkpoints stay.

    Left to Python is what depends on the values in a batch: which samples and tokens are real, in
    towers and projections, and the loop of a block, which ends when all samples have converged.
    What the block chooses and each of its rounds are graphs. Sizes become dynamic when they first
    change, so that after some steps nothing is compiled again, whatever the samples have.

    Args:
        backend: of `torch.compile`; "aot_eager" makes graphs without making them fast, for tests.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Marks the modules; each is compiled when it is first called."""
        for model in pl_module.modules():
            if isinstance(model, FusionModel):
                for part in (*layers_of(model.encoders), *model.blocks):
                    part.compile(backend=self.backend)


def layers_of(towers: nn.ModuleDict) -> Iterator[nn.Module]:
    """The outermost parts of towers that are called as modules."""
    for tower in towers.values():
        yield from _called(tower)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # are containers only
            yield from _called(child)
        else:
            yield child
