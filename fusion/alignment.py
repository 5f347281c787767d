"""The alignment of pretrained encoders, where training starts; its closed form is every report's
baseline.

Shapes: S samples, E width of the source features, D width of the target features.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, final

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import Encoder
from fusion.block import FusionBlock
from fusion.losses import contrastive_loss
from fusion.model import Batch, FusionModel
from fusion.optimization import AdamWithCosine
from fusion.projection import unit_means

_ENCODED = 64  # samples in one pass of an encoder


class LinearMap(NamedTuple):
    """x -> weight (x - source_mean), an estimate of target - target_mean.

    Attributes:
        weight: (D, E).
        source_mean: (E,).
        target_mean: (D,).
    """

    weight: Tensor
    source_mean: Tensor
    target_mean: Tensor

    def __call__(self, source: Tensor) -> Tensor:
        """Maps (..., E) to (..., D)."""
        return (source - self.source_mean) @ self.weight.T


def ridge_regression(
    source: Tensor, target: Tensor, weight: Tensor, strength: float = 1.0
) -> LinearMap:
    """Minimises sum_s w_s |W (x_s - mean x) - (y_s - mean y)|^2 + strength |W|^2, in float64.

    Args:
        source: (S, E) features x.
        target: (S, D) features y.
        weight: (S,) weights w of the samples, not negative.
        strength: of the penalty, above 0.

    Returns:
        The minimiser (Hoerl and Kennard 1970), in the dtype of `source`.

    Raises:
        ValueError: if the sizes differ, a value is not finite or `strength` is not positive.
    """
    if not len(source) == len(target) == len(weight) or not len(source):
        raise ValueError(
            f"Got {len(source)} sources, {len(target)} targets and {len(weight)} weights; give "
            "one of each per sample."
        )
    if strength <= 0 or not all(t.isfinite().all() for t in (source, target, weight)):
        raise ValueError("Ridge regression needs finite features and a positive strength.")
    x, y, w = source.double(), target.double(), weight.double().unsqueeze(1)
    x_mean, y_mean = (w * x).sum(0) / w.sum(), (w * y).sum(0) / w.sum()
    x, y = x - x_mean, y - y_mean
    gram = x.T @ (w * x) + strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(gram, x.T @ (w * y)).T
    return LinearMap(*(t.to(source.dtype) for t in (solution, x_mean, y_mean)))


@torch.no_grad()
def align_model(
    model: FusionModel, batches: Sequence[Batch], reference: str, strength: float = 0.3
) -> None:
    """Starts the projections of pretrained encoders at the linear alignment with one of them.

    The latent space becomes the (centred) token space of the reference encoder; every other
    pretrained encoder starts at the ridge regression onto it, and the blocks as the identity, so
    that the model is this regression at first. Newcomers are left alone.

    Args:
        model: its projections and blocks are changed.
        batches: training batches with tokens of the pretrained encoders, and `weight` (B,).
        reference: modality whose encoder has the width of the model and is pretrained.
        strength: of the ridge penalty, relative to the largest sample weight.

    Raises:
        ValueError: if the reference cannot serve as one.
    """
    if reference not in model.pretrained or model.encoders[reference].dim != model.dim:
        raise ValueError(
            f"Cannot align to {reference!r}; name a modality with a pretrained encoder whose width "
            f"is the model's dim ({model.dim}), or set align to null for a random start."
        )
    eye = torch.eye(model.dim)
    for name in model.pretrained:
        if name == reference:
            continue
        pairs = paired_means(batches, name, reference)
        fitted = ridge_regression(*pairs[:2], pairs.weight / pairs.weight.max(), strength)
        model.projection(name).align(fitted.weight, fitted.source_mean)
        model.projection(reference).align(eye, fitted.target_mean)
    for block in model.blocks:
        cast(FusionBlock, block).start_as_identity()


class Pairs(NamedTuple):
    """Samples that have two modalities.

    Attributes:
        source: (S, E) unit mean tokens of one.
        target: (S, D) of the other.
        weight: (S,) of the samples.
        group_id: (S,) equal ids are positives.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    group_id: Tensor

    def to(self, device: torch.device) -> "Pairs":
        """The same on a device."""
        return Pairs(*(column.to(device) for column in self))


def paired_means(batches: Iterable[Batch], source: str, target: str) -> Pairs:
    """Unit mean tokens of the samples that have both modalities."""
    columns: list[tuple[Tensor, ...]] = []
    for batch in batches:
        values, masks = batch["inputs"], batch["masks"]
        both = masks[source].any(1) & masks[target].any(1)
        means = (unit_means(values[name][both], masks[name][both]) for name in (source, target))
        columns.append((*means, batch["weight"][both], batch["group_id"][both]))
    return Pairs(*(torch.cat(column) for column in zip(*columns, strict=True)))


@torch.no_grad()
def with_mean_tokens(model: FusionModel, batch: Batch) -> Batch:
    """The batch with one token, the mean, for each input of a pretrained encoder that trains.

    Cached tokens and the inputs of newcomers stay as they are.
    """
    inputs, masks = dict(batch["inputs"]), dict(batch["masks"])
    for name in set(model.pretrained).difference(model.frozen).intersection(inputs):
        encoder = cast(Encoder, model.encoders[name])
        device, training = next(encoder.parameters()).device, encoder.training
        encoder.eval()
        means = []
        for some in torch.arange(len(masks[name])).split(_ENCODED):
            values, mask, _ = encoder(inputs[name][some].to(device), masks[name][some].to(device))
            means.append(unit_means(values, mask).to(batch["weight"]))
        encoder.train(training)
        inputs[name] = torch.cat(means).unsqueeze(1)
        masks[name] = masks[name].any(dim=1, keepdim=True)
    return {**batch, "inputs": inputs, "masks": masks}


@final
@dataclass(frozen=True)
class Alignment:
    """Brings pretrained encoders together before anything is fused.

    First in closed form (`align_model`); then the projections' residual MLPs train contrastively
    on the mean token of each sample alone. Nothing is fused, so that a step costs a small part of
    a training step, and it is worth as much (docs/log.md).

    Args:
        reference: modality whose encoder's space the latent space is.
        num_steps: of the second part; 0 leaves the residuals to the training that follows, any
            other number holds those of frozen encoders still in it.
        batch_size: samples of a step, drawn by their weights.
        lr: highest learning rate.
        strength: of the ridge penalty.

    Raises:
        ValueError: if a number is out of range.
    """

    reference: str
    num_steps: int = 500
    batch_size: int = 1024
    lr: float = 1e-3
    strength: float = 0.3

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.batch_size < 2 or min(self.lr, self.strength) <= 0:
            raise ValueError(
                f"Got {self}; give num_steps >= 0, batch_size >= 2 and a positive lr and strength."
            )

    def fit(
        self, model: FusionModel, batches: Sequence[Batch], log_logit_scale: Tensor
    ) -> Iterator[Tensor]:
        """Aligns, and yields the loss of each step of the second part.

        Args:
            model: its projections are changed.
            batches: training batches, with cached tokens of frozen encoders, `weight` (B,) and
                `group_id` (B,).
            log_logit_scale: parameter (T,) of T temperatures, learned along by its mean.

        Raises:
            ValueError: see `align_model`.
        """
        batches = [with_mean_tokens(model, batch) for batch in batches]
        align_model(model, batches, self.reference, self.strength)
        others = [name for name in model.pretrained if name != self.reference]
        if not others or not self.num_steps:
            return
        device = log_logit_scale.device
        pairs = {name: paired_means(batches, name, self.reference).to(device) for name in others}
        parts = [
            model.projection(name).mlp.train().requires_grad_(True) for name in model.pretrained
        ]
        weights = [log_logit_scale, *(p for part in parts for p in part.parameters())]
        made = AdamWithCosine().make(weights, self.lr, self.num_steps)
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        for _ in range(self.num_steps):
            losses = [self._loss(model, name, pairs[name], log_logit_scale) for name in others]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.detach()
        for name in model.frozen:
            model.projection(name).mlp.eval().requires_grad_(False)

    def _loss(self, model: FusionModel, name: str, pairs: Pairs, log_logit_scale: Tensor) -> Tensor:
        rows = torch.multinomial(pairs.weight, self.batch_size, replacement=True)
        sides = (
            (model.projection(name), pairs.source[rows]),
            (model.projection(self.reference), pairs.target[rows]),
        )
        a, b = (F.normalize(part.project_means(means), dim=-1, eps=1e-6) for part, means in sides)
        return contrastive_loss(a, b, log_logit_scale.mean().exp(), pairs.group_id[rows])
