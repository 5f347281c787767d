"""Checks that a sample's embedding is its own, and that a batch may be split."""

from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn

from fusion.doctor.base import (
    Check,
    Finding,
    Patient,
    State,
    noise_like,
    pick,
    taking_part,
    with_inputs,
    without_dropout,
)

CLOSE = 1e-3  # of unit rows; the solver stops within its own tolerance
EXACT, ROUNDED = 1e-8, 1e-2  # of the largest gradient, in float64 and in float32
SMALL = 5_000_000  # weights of a model whose parity is taken in float64
NUM_ALONE = 3


@final
class BatchInvariance(Check):
    """Whether a sample alone is embedded as in a batch, and whatever its neighbours hold.

    The second is asked in training mode too, as a BatchNorm mixes samples there.
    """

    title = "samples do not mix in a batch"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, _ = patient.copy()
        alone, beside = 0.0, 0.0
        for direction in patient.directions:
            rows = taking_part(patient.batch, direction)
            if len(rows) < 2:
                continue
            batch = pick(patient.batch, rows)
            model.eval()
            whole = _embed(patient, model, batch, direction)
            for row in range(min(NUM_ALONE, len(rows))):
                one = _embed(patient, model, pick(batch, torch.tensor([row])), direction)
                alone = max(alone, _distance(one, whole[:, row : row + 1]))
            without_dropout(model)
            noise = {}
            for name, values in batch["inputs"].items():
                noise[name] = torch.cat([values[:1], noise_like(values[1:])])
            pair = [
                _embed(patient, model, b, direction) for b in (batch, with_inputs(batch, noise))
            ]
            beside = max(beside, _distance(pair[0][:, :1], pair[1][:, :1]))
        what = f"alone {alone:.0e}, beside others {beside:.0e} apart"
        if not max(alone, beside) < CLOSE:
            advice = (
                "An embedding depends on the other samples: look for a BatchNorm that trains, or "
                "for padding that is not masked."
            )
            return Finding(State.FAIL, what, advice)
        return Finding(State.OK, what)


@final
class Parts(Check):
    """Whether loss and gradients of a batch in parts are those of the whole batch."""

    title = "a batch in parts is the whole batch"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        num = sum(parameter.numel() for parameter in patient.model.parameters())
        exact = num < SMALL
        try:
            worst = _difference(patient, exact)
        except (RuntimeError, ValueError) as error:
            if not exact:
                raise
            exact = False  # a tower that holds to float32
            del error
            worst = _difference(patient, exact)
        bar = EXACT if exact else ROUNDED
        what = f"gradients {worst:.0e} apart in {'float64' if exact else 'float32'}"
        if not worst < bar:
            advice = (
                "Parts are another loss here; leave part_size alone, and look for mixed samples."
            )
            return Finding(State.FAIL, what, advice)
        return Finding(State.OK, what)


def _embed(patient: Patient, model: Any, batch: Any, direction: Any) -> Tensor:
    """(2, R, D) queries and targets."""
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.stack([side.values for side in patient.pair(model, batch, [direction])[0]])


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm(dim=-1).max()) if one.shape == other.shape else float("inf")


def _difference(patient: Patient, exact: bool) -> float:
    """The largest difference of a gradient, as a share of the largest gradient."""
    model, loss = patient.copy()
    model.eval()
    batch = patient.batch
    if exact:
        model, loss = model.double(), loss.double()
        inputs = {n: x.double() if x.is_floating_point() else x for n, x in batch["inputs"].items()}
        batch = with_inputs(batch, inputs)
    found = [_gradients(patient, model, loss, pair, batch) for pair in _ways(patient)]
    largest = max(float(slope.abs().max()) for slope in found[0].values())
    if found[0].keys() != found[1].keys() or not largest:
        return float("inf")
    return max(float((found[0][n] - found[1][n]).abs().max()) for n in found[0]) / largest


def _ways(patient: Patient) -> tuple[Any, Any]:
    return patient.pair, patient.pair_in_parts


def _gradients(
    patient: Patient, model: nn.Module, loss: nn.Module, pair: Any, batch: Any
) -> dict[str, Tensor]:
    both = nn.ModuleDict({"model": deepcopy(model), "loss": deepcopy(loss)})
    sides = pair(both["model"], batch, patient.directions)
    torch.stack([both["loss"](*two, index) for index, two in enumerate(sides)]).sum().backward()
    return {n: p.grad for n, p in both.named_parameters() if p.grad is not None}
