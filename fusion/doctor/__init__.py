"""What can be told of a run before it starts: data, learning, leaks, parity, numbers."""

from fusion.doctor.base import Check, Finding, Intake, Patient, State
from fusion.doctor.data import Captions, Feeding, FiniteInputs, Present, Readable
from fusion.doctor.invariance import BatchInvariance, Parts
from fusion.doctor.leaks import Independent, TargetGradient, TargetNoise
from fusion.doctor.learning import Alive, Overfits
from fusion.doctor.numerics import Converged, FiniteNumbers, Memory
from fusion.doctor.visit import Result, visit

__all__ = [
    "Alive",
    "BatchInvariance",
    "Captions",
    "Check",
    "Converged",
    "Feeding",
    "Finding",
    "FiniteInputs",
    "FiniteNumbers",
    "Independent",
    "Intake",
    "Memory",
    "Overfits",
    "Parts",
    "Patient",
    "Present",
    "Readable",
    "Result",
    "State",
    "TargetGradient",
    "TargetNoise",
    "visit",
]
