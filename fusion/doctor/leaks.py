"""Checks that a query has not seen what it is matched with."""

from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from fusion.doctor.base import (
    Check,
    Finding,
    Patient,
    State,
    noise_like,
    pick,
    taking_part,
    with_inputs,
)

NUM_PERMUTATIONS = 16


@final
class TargetNoise(Check):
    """Whether noise in place of the target leaves the query as it is, to the bit."""

    title = "queries do not see their target"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, _ = patient.copy()
        leaks, deaf = [], []
        for direction in patient.directions:
            noise = {
                n: noise_like(patient.batch["inputs"][n])
                for n in direction.target
                if n in patient.batch["inputs"]
            }
            for training in (False, True):
                model.train(training)
                pairs = []
                for batch in (patient.batch, with_inputs(patient.batch, noise)):
                    torch.manual_seed(0)  # equal dropout
                    with torch.no_grad():
                        pairs.append(patient.pair(model, batch, [direction])[0])
                (query, target), (same, other) = pairs
                if not query.values.equal(same.values):
                    leaks.append(str(direction))
                if len(target.values) and target.values.equal(other.values):
                    deaf.append(str(direction))
        what = f"{len(patient.directions)} directions, to the bit"
        if leaks:
            advice = f"The query changes with its target in {', '.join(dict.fromkeys(leaks))}."
            return Finding(State.FAIL, what, f"{advice} Fuse the two sides apart.")
        if deaf:
            advice = f"Targets do not change with their input in {', '.join(dict.fromkeys(deaf))}."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class TargetGradient(Check):
    """Whether the gradient of a query with respect to its target's tokens is exactly zero."""

    title = "no gradient from query to target"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, _ = patient.copy()
        model.eval()
        tokens: dict[str, Tensor] = {}

        def keep(name: str, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            tokens[name] = values.detach().requires_grad_()
            return tokens[name], mask

        for name, part in model.projections.items():
            part.register_forward_pre_hook(partial(_with_name, keep, name))
        leaks = []
        for direction in patient.directions:
            tokens.clear()
            query, _ = patient.pair(model, patient.batch, [direction])[0]
            targets = [tokens[name] for name in direction.target if name in tokens]
            if query.values.requires_grad and targets:
                weight = torch.randn_like(query.values)  # the sum of squares of a unit row is flat
                found = torch.autograd.grad(
                    (query.values * weight).sum(), targets, allow_unused=True
                )
                if any(slope is not None and slope.any() for slope in found):
                    leaks.append(str(direction))
        what = f"{len(patient.directions)} directions, exactly 0"
        if leaks:
            advice = f"Gradients flow from query to target in {', '.join(leaks)}; fuse them apart."
            return Finding(State.FAIL, what, advice)
        return Finding(State.OK, what)


@final
class Independent(Check):
    """Whether targets of other samples are found no better than by chance.

    With inputs of query and target that have nothing to do with each other a query is, on the
    average over pairings, no nearer to its own target than to the others. InfoNCE is at least ln R
    for R rows then, as the logarithm is concave; the distances also tell where a model that has
    learned nothing yet is far above it.
    """

    title = "chance on independent pairs"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, _ = patient.copy()
        model.eval()
        nearer, num = [], 0
        for index, direction in enumerate(patient.directions):
            rows = taking_part(patient.batch, direction)
            if len(rows) < 2:
                continue
            num += 1
            own = pick(patient.batch, rows)
            margins = torch.tensor(
                [
                    self._margin(patient, model, _shuffled(own, direction.target), index)
                    for _ in range(NUM_PERMUTATIONS)
                ]
            )
            error = float(margins.std()) / len(margins) ** 0.5
            if float(margins.mean()) > 5 * error + 1e-5:  # once in 10,000 by chance
                nearer.append(f"{direction} (cosine above others' by {margins.mean():.3f})")
        what = f"{num} directions, no target nearer than others"
        if nearer:
            advice = f"Unrelated targets are found in {', '.join(nearer)}: the query knows them."
            return Finding(State.FAIL, what, advice)
        return Finding(State.OK, what)

    def _margin(self, patient: Patient, model: Any, batch: Any, index: int) -> float:
        with torch.no_grad():
            query, target = patient.pair(model, batch, [patient.directions[index]])[0]
            cosines = query.values @ target.values.mT
            return float(cosines.diagonal().mean() - cosines.mean())


def _with_name(keep: Any, name: str, module: Any, given: tuple[Tensor, Tensor]) -> Any:
    return keep(name, *given)


def _shuffled(batch: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Some modalities, given to other samples; none keeps its own."""
    num = len(batch["group_id"])
    order = torch.randperm(num)
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    changed = {
        kind: {n: x[moved] if n in names else x for n, x in batch[kind].items()}
        for kind in ("inputs", "masks", "positions")
    }
    return {**batch, **changed}
