"""Compiled by inductor, layers and blocks compute on a GPU what they do in eager mode."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.measure import milliseconds
from encoders import TextTransformer, ViT
from fusion.tasks.compiled import Compiled
from tests.fusion.tasks.test_compiled import _fresh, gradients  # noqa: F401  a fixture
from tests.gpu.towers import DEVICE, DIM, make_task, make_trainer

NUM_SAMPLES, NUM_IDS = 128, 16
SAME = 1e-3  # relative Euclidean difference of all gradients, in float32
REPEATS = 10


@pytest.fixture
def task(tmp_path):
    image = ViT(DIM, 2, 4, size=64, patch=8, dropout=0.0)
    text = TextTransformer(DIM, 2, 4, max_tokens=NUM_IDS, dropout=0.0)
    shares = {"image->text": 1.0}
    made = make_task(tmp_path, {"image": image, "text": text}, directions=shares)
    for projection in made.model.projections.values():
        projection.mlp.eval()  # drops nothing out
    for block in made.model.blocks:
        torch.nn.init.normal_(block.out.weight, std=0.3)
    made.log = lambda *args, **options: None
    return made.to(DEVICE)


def batch_of(num: int) -> dict:
    masks = {"image": torch.ones(num, 1), "text": torch.ones(num, NUM_IDS)}
    masks["image"][num // 2 : num // 2 + 3] = 0
    masks["text"][::3, NUM_IDS // 2 :] = 0
    inputs = {
        "image": torch.randint(0, 256, (num, 1, 3, 64, 64), dtype=torch.uint8),
        "text": torch.randint(1, 1000, (num, NUM_IDS)),
    }
    return {
        "inputs": {name: x.to(DEVICE) for name, x in inputs.items()},
        "masks": {name: x.bool().to(DEVICE) for name, x in masks.items()},
        "positions": {},
        "group_id": torch.arange(num, device=DEVICE),
    }


def deviation(one: dict, other: dict) -> float:
    """Relative Euclidean difference of all gradients, the loss among them."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([found[n].flatten().float() for n in one]) for found in (one, other))
    return float((a - b).norm() / b.norm())


def test_compiled_equals_eager(task, tmp_path):
    eager = copy.deepcopy(task)
    eager.log = task.log
    Compiled().setup(make_trainer(tmp_path), task, "fit")
    for num in (NUM_SAMPLES, NUM_SAMPLES - 16):
        batch = batch_of(num)
        wanted, got = gradients(eager, batch), gradients(task, batch)
        with torch.autocast(DEVICE, torch.bfloat16):
            low = gradients(eager, batch)
        print(f"B={num}: compiled {deviation(got, wanted):.1e}, bf16 {deviation(low, wanted):.1e}")
        assert deviation(got, wanted) < SAME < deviation(low, wanted)
        assert got["the loss"].isfinite() and wanted["the loss"] > 1
        names = "encoders.image.net", "encoders.text.net", "blocks.0"
        for name in names:  # none is without a gradient, and each has its own right
            parts = [
                {n: g for n, g in found.items() if n.startswith(f"model.{name}")}
                for found in (got, wanted)
            ]
            assert parts[0] and deviation(*parts) < 10 * SAME, name
    with torch.no_grad():
        rows = [module.eval().model.embed(batch) for module in (task, eager)]
    assert (rows[0] - rows[1]).abs().max() < 1e-4
    assert counters["stats"]["unique_graphs"] > 5


def test_time_of_a_step(task, tmp_path):
    """Printed, not judged."""
    eager, batch = copy.deepcopy(task), batch_of(NUM_SAMPLES)
    eager.log = task.log
    Compiled().setup(make_trainer(tmp_path), task, "fit")
    for module in (eager, task):
        for _ in range(3):
            gradients(module, batch)
    forms = [lambda: gradients(eager, batch), lambda: gradients(task, batch)]
    plain, compiled = milliseconds(forms, REPEATS, DEVICE)
    print(f"forward and backward, B={NUM_SAMPLES}: eager {plain:.2f} ms, compiled {compiled:.2f}")
    assert min(plain, compiled) > 0
