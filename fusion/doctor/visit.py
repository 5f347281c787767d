"""All checks, one after the other."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from fusion.doctor.base import Check, Finding, Patient, State
from fusion.doctor.data import Captions, Feeding, FiniteInputs, Present, Readable
from fusion.doctor.invariance import BatchInvariance, Parts
from fusion.doctor.leaks import Independent, TargetGradient, TargetNoise
from fusion.doctor.learning import Alive, Overfits
from fusion.doctor.numerics import Converged, FiniteNumbers, Memory

CHECKS: tuple[Check, ...] = (
    *(Readable(), Present(), Captions(), FiniteInputs(), Feeding()),
    *(TargetNoise(), TargetGradient(), Independent(), BatchInvariance(), Parts()),
    *(FiniteNumbers(), Converged(), Memory(), Alive(), Overfits()),
)


class Result(NamedTuple):
    """What a check found.

    Attributes:
        title: of the check.
        finding: what it found.
        seconds: that it took.
    """

    title: str
    finding: Finding
    seconds: float


def visit(patient: Patient, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """Runs checks; a check that breaks down has failed. Torch's generators are left as they were.

    Args:
        patient: what is examined.
        checks: those to run.
    """
    for check in checks:
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                finding = check.run(patient)
            except Exception as error:  # of a model that is somebody else's
                reason = " ".join(str(error).split())[:200] or "no reason given"
                what = f"{type(error).__name__}: {reason}"
                finding = Finding(State.FAIL, what, "The model cannot do this; mend the error.")
        yield Result(check.title, finding, time.perf_counter() - began)
