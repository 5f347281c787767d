"""What is examined before a long run, and what a check finds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from fusion.losses import ContrastiveLoss, Rows
from fusion.model import Batch, FusionModel
from fusion.subsets import Direction

Pair = Callable[[FusionModel, Batch, Sequence[Direction]], list[tuple[Rows, Rows]]]
"""Makes query and target of each direction from a batch, as a training step does."""
COLUMNS = ("inputs", "masks", "positions")


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        state: how it ended.
        what: what was measured, in one line.
        advice: what to do, in one sentence; "" if all is well.
    """

    state: State
    what: str
    advice: str = ""


@final
@dataclass(frozen=True)
class Intake:
    """What reading some samples was like.

    Attributes:
        num_read: samples.
        rejected: reason code to number of samples.
        example: the first that was rejected, with its reason; "" if none was.
        present: modality to number of samples that have it.
        lengths: number of letters of each caption.
        groups: group of each sample.
        seconds: of reading and preparing a sample, on the average.
        concurrent: whether loading goes on while the model trains.
        max_rejected: share of the samples that may be rejected in training.
    """

    num_read: int
    rejected: Mapping[str, int]
    example: str
    present: Mapping[str, int]
    lengths: Sequence[int]
    groups: Sequence[int]
    seconds: float
    concurrent: bool
    max_rejected: float = 0.05


@final
@dataclass(frozen=True)
class Patient:
    """A model with all that trains it. Checks change copies of it only.

    Attributes:
        model: the model.
        loss: the loss.
        directions: those that are trained.
        pair: makes the two sides of a direction.
        pair_in_parts: the same, a few samples at a time.
        batch: a few samples.
        batch_size: of training.
        lr: highest learning rate.
        intake: how reading went.
    """

    model: FusionModel
    loss: ContrastiveLoss
    directions: Sequence[Direction]
    pair: Pair
    pair_in_parts: Pair
    batch: Batch
    batch_size: int
    lr: float
    intake: Intake

    def copy(self, awake: bool = True) -> tuple[FusionModel, ContrastiveLoss]:
        """A model and a loss to be changed.

        Args:
            awake: weights that are all zero, as new residual branches are, become random: what is
                wrong behind them would else not show.
        """
        model, loss = deepcopy(self.model), deepcopy(self.loss)
        with torch.no_grad():
            for parameter in model.parameters() if awake else ():
                if parameter.dim() > 1 and not parameter.any():
                    parameter.normal_(std=0.5 * parameter.shape[1] ** -0.5)
        return model, loss

    def total(self, model: FusionModel, loss: ContrastiveLoss, pair: Pair | None = None) -> Tensor:
        """The sum of the losses of all directions on the batch."""
        sides = (pair or self.pair)(model, self.batch, self.directions)
        return torch.stack([loss(*two, index) for index, two in enumerate(sides)]).sum()


class Check(ABC):
    """Looks at one thing that can be wrong.

    Attributes:
        title: what it looks at, in a few words.
    """

    title: str = ""

    @abstractmethod
    def run(self, patient: Patient) -> Finding:
        """Examines, and changes nothing."""


def taking_part(batch: Batch, direction: Direction) -> Tensor:
    """Indices of the samples that have all modalities of a direction."""
    names, masks = (*direction.query, *direction.target), batch["masks"]
    if any(name not in masks for name in names):
        return torch.zeros(0, dtype=torch.long)
    return torch.stack([masks[name].any(1) for name in names]).all(0).nonzero().squeeze(1)


def pick(batch: Batch, rows: Tensor) -> dict[str, Any]:
    """The samples of a batch at some indices, each of a group of its own."""
    columns = {kind: {n: x[rows] for n, x in batch[kind].items()} for kind in COLUMNS}
    return {**columns, "group_id": torch.arange(len(rows))}


def with_inputs(batch: Batch, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch with other inputs."""
    return {**batch, "inputs": {**batch["inputs"], **inputs}}


def noise_like(values: Tensor) -> Tensor:
    """Noise of the same kind: normal of the same spread, or the same whole numbers in disorder."""
    if values.is_floating_point():
        return torch.randn_like(values) * values.std().nan_to_num(1).clamp(min=1e-3)
    return values.flatten()[torch.randperm(values.numel())].view_as(values)


def without_dropout(model: nn.Module) -> nn.Module:
    """The module in training mode, but for dropout."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()
    return model


def trained_parts(model: FusionModel) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of towers, projections and blocks that have something to train."""
    named = [
        *((f"tower {name}", part) for name, part in model.encoders.items()),
        *((f"projection {name}", part) for name, part in model.projections.items()),
        *((f"block {index}", part) for index, part in enumerate(model.blocks)),
    ]
    for name, part in named:
        if any(parameter.requires_grad for parameter in part.parameters()):
            yield name, part
