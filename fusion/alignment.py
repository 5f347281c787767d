"""The closed-form linear alignment: where projections start, and the baseline of every report.

Shapes: S samples, E width of the source features, D width of the target features.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.model import Batch, FusionModel
from fusion.projection import unit_means


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
    """Starts the projections of frozen encoders at the linear alignment with one of them.

    The latent space becomes the (centred) token space of the reference encoder; every other
    frozen encoder starts at the ridge regression onto it. Encoders that train are left alone.

    Args:
        model: its projections are changed.
        batches: training batches with cached tokens, and `weight` (B,).
        reference: modality whose encoder has the width of the model and is frozen.
        strength: of the ridge penalty, relative to the largest sample weight.

    Raises:
        ValueError: if the reference cannot serve as one.
    """
    if reference not in model.frozen or model.encoders[reference].dim != model.dim:
        raise ValueError(
            f"Cannot align to {reference!r}; name a modality with a frozen encoder whose width is "
            f"the model's dim ({model.dim}), or set align_to to null for a random start."
        )
    eye = torch.eye(model.dim)
    for name in model.frozen:
        if name == reference:
            continue
        source, target, weight = paired_means(batches, name, reference)
        fitted = ridge_regression(source, target, weight / weight.max(), strength)
        model.projection(name).align(fitted.weight, fitted.source_mean)
        model.projection(reference).align(eye, fitted.target_mean)


def paired_means(
    batches: Iterable[Batch], source: str, target: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit mean tokens (S, E), (S, D) and weights (S,) of the samples that have both modalities."""
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        values, masks = batch["inputs"], batch["masks"]
        both = masks[source].any(1) & masks[target].any(1)
        source_mean, target_mean = (
            unit_means(values[name][both], masks[name][both]) for name in (source, target)
        )
        columns.append((source_mean, target_mean, batch["weight"][both]))
    first, second, third = (torch.cat(column) for column in zip(*columns, strict=True))
    return first, second, third
