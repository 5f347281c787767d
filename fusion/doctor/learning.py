"""Checks that the model learns."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch.optim import AdamW

from fusion.doctor.base import Check, Finding, Patient, State, trained_parts, without_dropout
from fusion.subsets import Direction

NUM_STEPS, MAX_SECONDS = 60, 15.0  # at the given learning rate; others get less time
COMMON_LR = 1e-3
# Shares of what a model that knows nothing would lose.
LEARNED, FALLING, NOT_AT_ALL = 0.5, 0.8, 0.95


@final
class Alive(Check):
    """Whether every part that shall train gets a gradient, and which parts do not train."""

    title = "every part gets a gradient"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, loss = patient.copy()
        without_dropout(model)
        patient.total(model, loss).backward()
        parts = [*trained_parts(model), ("temperature", loss)]
        dead = [
            name
            for name, part in parts
            if not any(p.grad is not None and p.grad.any() for p in part.parameters())
        ]
        num = sum(p.numel() for _, part in parts for p in part.parameters() if p.requires_grad)
        what = f"{num:,} weights train"
        if model.frozen:
            what = f"{what}; frozen: {', '.join(model.frozen)}"
        by_design = [name for name in dead if name.partition(" ")[2] in _never_learning(patient)]
        if wrong := [name for name in dead if name not in by_design]:
            advice = f"No gradient reaches {', '.join(wrong)}; look for a detach or a factor of 0."
            return Finding(State.FAIL, what, advice)
        if by_design:
            advice = f"No direction trains {', '.join(by_design)}; add one, or freeze it."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class Overfits(Check):
    """Whether a small batch can be learned by heart, and with which learning rate."""

    title = "learns one batch by heart"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        patient = replace(patient, directions=_covering(patient.directions))
        chance = _ignorance(patient)
        if not chance:
            advice = "Give more samples that have all modalities of a direction."
            return Finding(State.WARNING, "no direction has two samples to tell apart", advice)
        given = _train(patient, patient.lr, LEARNED * chance, MAX_SECONDS)
        what = f"{given}; chance {chance:.2f}"
        if given.lowest < LEARNED * chance:
            return Finding(State.OK, what)
        if given.in_a_hurry and given.lowest < FALLING * chance:
            advice = "Slow here, and the loss was still falling when the time was up."
            return Finding(State.WARNING, what, advice)
        runs = [given]
        for lr in (10 * patient.lr, 0.1 * patient.lr, COMMON_LR):
            runs.append(_train(patient, lr, LEARNED * chance, MAX_SECONDS / 3))
            if runs[-1].lowest < (FALLING if runs[-1].in_a_hurry else LEARNED) * chance:
                return Finding(State.WARNING, what, f"Set lr near {lr:.1e}: {runs[-1]}.")
        if min(run.lowest for run in runs) > NOT_AT_ALL * chance:
            advice = "No learning rate brings it below chance: queries tell nothing of targets."
        else:
            advice = "No learning rate brings it far below chance: see what is frozen or too small."
        return Finding(State.FAIL, what, advice)


class _Run(NamedTuple):
    """How a training went.

    Attributes:
        lr: learning rate.
        first: loss of the first step.
        lowest: lowest loss.
        num_steps: steps that were taken.
        in_a_hurry: time was up before all steps were taken.
    """

    lr: float
    first: float
    lowest: float
    num_steps: int
    in_a_hurry: bool

    def __str__(self) -> str:
        return (
            f"loss {self.first:.2f} to {self.lowest:.2f} in {self.num_steps} steps at lr "
            f"{self.lr:.1e}"
        )


def _train(patient: Patient, lr: float, enough: float, max_seconds: float) -> _Run:
    model, loss = patient.copy(awake=False)
    without_dropout(model)
    weights = [p for part in (model, loss) for p in part.parameters() if p.requires_grad]
    optimizer = AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    end = time.monotonic() + max_seconds
    for _ in range(NUM_STEPS + 1):
        optimizer.zero_grad()
        total = patient.total(model, loss)
        losses.append(float(total.detach()))
        if losses[-1] < enough or not math.isfinite(losses[-1]) or time.monotonic() > end:
            break
        total.backward()
        optimizer.step()
    lowest = min(losses) if math.isfinite(losses[-1]) else math.inf
    return _Run(lr, losses[0], lowest, len(losses) - 1, len(losses) <= NUM_STEPS)


def _covering(directions: Sequence[Direction]) -> list[Direction]:
    """The first directions that together have all modalities: as telling as all, and faster."""
    chosen: list[Direction] = []
    seen: set[str] = set()
    for direction in directions:
        if not seen.issuperset(names := {*direction.query, *direction.target}):
            chosen.append(direction)
            seen |= names
    return chosen


def _ignorance(patient: Patient) -> float:
    """What a model that knows nothing would lose: ln R for each direction of R rows."""
    with torch.no_grad():
        sides = patient.pair(patient.model, patient.batch, patient.directions)
    return sum(math.log(len(query.values)) for query, _ in sides if len(query.values) > 1)


def _never_learning(patient: Patient) -> set[str]:
    """Modalities whose towers no direction trains: strangers come to meet them."""
    model, learning = patient.model, set()
    for direction in patient.directions:
        names = {*direction.query, *direction.target}
        learning |= names & set(model.newcomers) or names
    return set(model.modalities) - learning
