"""Every check passes a healthy model, and fails one that has what it looks for."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from fusion import doctor
from fusion.doctor import Check, Finding, Intake, Patient, State, visit
from fusion.model import FusionModel
from fusion.solver import FixedPointSolver
from tests.fusion.tasks.toys import NAMES, make_batch, make_task

INTAKE = Intake(
    num_read=100,
    rejected={},
    example="",
    present={"image": 100, "text": 100, "audio": 40},
    lengths=[20] * 100,
    groups=list(range(100)),
    seconds=1e-5,
    concurrent=True,
)


def make(tmp_path, lr: float = 1e-2, **options) -> Patient:
    task = make_task(tmp_path, lr=lr, **options)
    for block in task.model.blocks:
        block.solver = FixedPointSolver()
    batch = make_batch(8)
    batch["masks"]["audio"][5:] = False
    return Patient(
        model=task.model,
        loss=task.loss,
        directions=list(task.shares),
        pair=task.pairing,
        pair_in_parts=replace(task.pairing, part_size=3),
        batch=batch,
        batch_size=64,
        lr=lr,
        intake=INTAKE,
    )


def found(check: Check, patient: Patient) -> Finding:
    (result,) = visit(patient, [check])
    return result.finding


def all_checks() -> list[type[Check]]:
    return [kind for kind in vars(doctor).values() if isinstance(kind, type) and is_leaf(kind)]


def is_leaf(kind: type) -> bool:
    return issubclass(kind, Check) and kind is not Check


def test_the_list_of_checks_is_whole():
    assert {type(check) for check in doctor.visit.__globals__["CHECKS"]} == set(all_checks())


@pytest.mark.parametrize("kind", all_checks())
def test_a_healthy_model_passes_and_stays_as_it_is(kind, tmp_path):
    patient = make(tmp_path)
    before = {name: value.clone() for name, value in patient.model.state_dict().items()}
    inputs = {name: value.clone() for name, value in patient.batch["inputs"].items()}
    generator, training = torch.get_rng_state(), patient.model.training
    finding = found(kind(), patient)
    assert finding.state is State.OK and not finding.advice and finding.what, finding
    assert kind.title and generator.equal(torch.get_rng_state())
    assert patient.model.training == training
    assert all(value.equal(before[name]) for name, value in patient.model.state_dict().items())
    assert all(value.equal(inputs[name]) for name, value in patient.batch["inputs"].items())
    assert all(p.grad is None for p in patient.model.parameters())


def test_rejected_samples(tmp_path):
    patient, example = make(tmp_path), "a.tar: s1 (image): cut off"
    cases = {2: State.WARNING, 20: State.FAIL, 100: State.FAIL}
    for num, state in cases.items():
        intake = replace(INTAKE, rejected={"cut_off": num}, example=example)
        finding = found(doctor.Readable(), replace(patient, intake=intake))
        assert finding.state is state and example in finding.advice and "cut_off" in finding.what


def test_modalities_that_nothing_has(tmp_path):
    patient = make(tmp_path)
    some = replace(INTAKE, present={"image": 100, "text": 100})
    finding = found(doctor.Present(), replace(patient, intake=some))
    assert finding.state is State.WARNING and "audio->text" in finding.advice
    none = replace(INTAKE, present={"image": 100})
    finding = found(doctor.Present(), replace(patient, intake=none))
    assert finding.state is State.FAIL and "no sample has text or audio" in finding.advice
    rare = replace(INTAKE, present={"image": 100, "text": 100, "audio": 1})
    finding = found(doctor.Present(), replace(patient, intake=rare))
    assert finding.state is State.WARNING and "next to no audio" in finding.advice


def test_captions_and_groups(tmp_path):
    patient = make(tmp_path)
    for change, state in (
        ({"groups": [7] * 100}, State.FAIL),
        ({"groups": [1, 2] * 50}, State.WARNING),
        ({"lengths": [0, *[20] * 99]}, State.WARNING),
        ({"groups": [], "lengths": []}, State.FAIL),
    ):
        intake = replace(INTAKE, **change)
        assert found(doctor.Captions(), replace(patient, intake=intake)).state is state


def test_slow_loading(tmp_path):
    patient = make(tmp_path)
    slow = replace(patient, intake=replace(INTAKE, seconds=10.0))
    finding = found(doctor.Feeding(), slow)
    assert finding.state is State.WARNING and "num_workers" in finding.advice
    once = replace(patient, intake=replace(INTAKE, seconds=10.0, concurrent=False))
    assert found(doctor.Feeding(), once).state is State.OK


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_input_that_is_not_finite(bad, tmp_path):
    patient = make(tmp_path)
    patient.batch["inputs"]["image"][3, 1, 4] = bad
    finding = found(doctor.FiniteInputs(), patient)
    assert finding.state is State.FAIL and "sample3 (image)" in finding.advice
    finding = found(doctor.FiniteNumbers(), patient)
    assert finding.state is State.FAIL and "fp32" in finding.advice + finding.what


LEAKS = [doctor.TargetNoise, doctor.TargetGradient, doctor.Independent]


@pytest.mark.parametrize("kind", LEAKS)
def test_a_query_that_holds_its_target(kind, tmp_path, monkeypatch):
    encode = FusionModel.encode

    def leaky(self, batch, modalities):
        """Pictures have seen the words."""
        tokens = encode(self, batch, modalities)
        if {"image", "text"} <= set(tokens):
            mixed = tokens["image"].values + tokens["text"].values.mean(1, keepdim=True)
            tokens["image"] = tokens["image"]._replace(values=mixed)
        return tokens

    monkeypatch.setattr(FusionModel, "encode", leaky)
    finding = found(kind(), make(tmp_path))
    assert finding.state is State.FAIL and "image->text" in finding.advice, finding
    assert " audio->" not in finding.advice  # which are as they should be


class Deaf(nn.Module):
    """Says the same of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, values):
        return 0 * self.linear(values) + 1


class Mixing(nn.Module):
    """Subtracts the mean of a batch, in evaluation too."""

    def forward(self, values):
        return values - values.mean(0, keepdim=True)


class Norm(nn.Module):
    """A BatchNorm, which mixes samples while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, values):
        return self.norm(values.flatten(0, 1)).view_as(values)


def with_layer(tmp_path, layer: nn.Module, name: str = "image", **options) -> Patient:
    patient = make(tmp_path, **options)
    tower = patient.model.encoders[name]
    tower.linear = nn.Sequential(layer, tower.linear) if not isinstance(layer, Deaf) else layer
    return patient


@pytest.mark.parametrize("layer", [Mixing, Norm])
def test_samples_that_mix(layer, tmp_path):
    finding = found(doctor.BatchInvariance(), with_layer(tmp_path, layer()))
    assert finding.state is State.FAIL and "BatchNorm" in finding.advice, finding


def test_parts_that_are_not_the_whole(tmp_path):
    assert found(doctor.Parts(), with_layer(tmp_path, Mixing())).state is State.FAIL
    assert found(doctor.Parts(), with_layer(tmp_path, Norm())).state is State.OK  # not training


def test_a_tower_that_is_dead(tmp_path):
    patient = with_layer(tmp_path, Deaf())
    finding = found(doctor.Alive(), patient)
    assert finding.state is State.FAIL and "tower image" in finding.advice
    assert "tower text" not in finding.advice
    assert found(doctor.TargetNoise(), patient).state is State.WARNING


def test_what_no_direction_trains(tmp_path):
    patient = make(tmp_path, frozen=("text",), directions={"audio->image": 1.0, "audio->text": 1.0})
    patient.model.encoders["image"].pretrained = True
    finding = found(doctor.Alive(), patient)
    assert finding.state is State.WARNING
    assert "tower image" in finding.advice and "projection text" in finding.advice
    assert "frozen: text" in finding.what


def test_what_cannot_be_learned(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.doctor.learning.NUM_STEPS", 10)
    patient = make(tmp_path)
    for name in NAMES:
        patient.model.encoders[name].linear = Deaf()
    finding = found(doctor.Overfits(), patient)
    assert finding.state is State.FAIL and "below chance" in finding.advice, finding
    patient = make(tmp_path, directions={"image->text": 1.0})
    patient.model.requires_grad_(False)
    assert found(doctor.Overfits(), patient).state is State.FAIL


def test_a_learning_rate_that_does_not_learn(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.doctor.learning.NUM_STEPS", 25)
    finding = found(doctor.Overfits(), replace(make(tmp_path), lr=1e-6))
    assert finding.state is State.WARNING and "Set lr near 1.0e-03" in finding.advice, finding


def test_an_iteration_that_does_not_converge(tmp_path):
    patient = make(tmp_path)
    for block in patient.model.blocks:
        block.solver = FixedPointSolver(max_iters=1, tol=1e-6)
    finding = found(doctor.Converged(), patient)
    assert finding.state is State.WARNING and "max_iters" in finding.advice


def test_a_batch_that_does_not_fit(tmp_path):
    finding = found(doctor.Memory(), replace(make(tmp_path), batch_size=10**10))
    assert finding.state is State.WARNING and "part_size" in finding.advice


def test_a_model_that_breaks_down(tmp_path):
    class Broken(nn.Module):
        def forward(self, values):
            raise RuntimeError("no such\nthing")

    patient = with_layer(tmp_path, Broken())
    for result in visit(patient, [doctor.TargetNoise(), doctor.Overfits()]):
        assert result.finding.state is State.FAIL
        assert result.finding.what == "RuntimeError: no such thing"


def test_all_that_is_found_is_plain(tmp_path):
    results = list(visit(make(tmp_path)))
    assert isinstance(INTAKE.present, Mapping) and len(results) == len(all_checks())
    assert all(result.seconds >= 0 for result in results)
