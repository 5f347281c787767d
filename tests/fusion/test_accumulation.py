"""Towers that run in parts give the gradients of towers that run at once."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusion import accumulation
from fusion.accumulation import embed_in_parts
from fusion.assim import ProximalAssim
from fusion.block import FusionBlock
from fusion.losses import InfoNCE, Rows
from fusion.solver import FixedPointSolver, Full, Implicit, Unrolled


class Towers(nn.Module):
    """Two directions that share the image tower; one part may lack audio."""

    def __init__(self) -> None:
        super().__init__()
        names = ("image", "text", "audio")
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 4))
                for name in names
            }
        )
        self.loss = InfoNCE(5.0, num_temperatures=2)

    def embed(self, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {f"{n}_id": torch.arange(len(x)) + int(x[0, 0] * 1e6) for n, x in part.items()}
        return made | {n: F.normalize(self.towers[n](x), dim=1) for n, x in part.items()}

    def total(self, made: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = {n: Rows(made[n], made[f"{n}_id"]) for n in self.towers if n in made}
        ids = made["image_id"]
        losses = [
            self.loss(rows["image"], Rows(rows[n].values, ids[: len(rows[n].values)]), index)
            for index, n in enumerate(("text", "audio"))
        ]
        return torch.stack(losses).sum()


def make_parts(device: str = "cpu") -> list[dict[str, torch.Tensor]]:
    sizes = [
        (6, ("image", "text", "audio")),
        (3, ("image", "text", "audio")),
        (4, ("image", "text")),
    ]
    return [{n: torch.randn(size, 5, device=device) for n in names} for size, names in sizes]


def joined(made: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for one in made for name in one)
    return {name: torch.cat([one[name] for one in made if name in one]) for name in names}


def gradients(module: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def both(model: Towers, parts) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(5)
    wanted = gradients(model, model.total(joined([model.embed(part) for part in parts])))
    torch.manual_seed(5)
    return wanted, gradients(model, model.total(embed_in_parts(model, model.embed, parts)))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lacking", ["at the end", "at the start", "nowhere"])
def test_parts_give_the_gradients_of_the_whole(lacking, device):
    model, parts = Towers().to(device, torch.float64), make_parts(device)
    if lacking == "at the start":
        parts.reverse()
    parts = [
        {n: x.double() for n, x in p.items()} for p in parts[: 2 if lacking == "nowhere" else 3]
    ]
    for got, wanted in zip(*both(model, parts), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_without_replay_the_gradients_are_others(device, monkeypatch):
    monkeypatch.setattr(accumulation, "_generators", lambda state: nullcontext())
    model = Towers().to(device)
    wanted, got = both(model, make_parts(device))
    assert any((x - y).abs().max() > 0.1 * y.abs().max() for x, y in zip(got, wanted, strict=True))


def test_generators_go_on_as_if_nothing_had_been_drawn_again():
    model, parts = Towers(), make_parts()
    made = model.total(embed_in_parts(model, model.embed, parts))
    state = torch.get_rng_state()
    made.backward()
    assert state.equal(torch.get_rng_state())


def test_what_came_before_the_second_run_does_not_matter():
    model, parts = Towers(), make_parts()
    torch.manual_seed(0)
    first = gradients(model, model.total(embed_in_parts(model, model.embed, parts)))
    torch.manual_seed(0)
    loss = model.total(embed_in_parts(model, model.embed, parts))
    torch.rand(99)
    assert all(map(torch.equal, first, gradients(model, loss)))


@pytest.mark.parametrize("replayed", [True, False])
def test_automatic_precision_is_replayed(replayed, monkeypatch):
    if not replayed:
        monkeypatch.setattr(accumulation, "_autocast", lambda state: nullcontext())
    model, parts, seen = Towers().eval(), make_parts(), []
    model.towers["text"].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model.total(joined([model.embed(part) for part in parts]))
        loss = model.total(embed_in_parts(model, model.embed, parts))
        after = model.embed(parts[0])["image"]
    assert after.requires_grad and after.mean().backward() is None  # weights are not cut off
    for got, same in zip(gradients(model, loss), gradients(model, wanted), strict=True):
        assert (got - same).norm() < 0.1 * same.norm()
    assert set(seen) == {torch.bfloat16} if replayed else set(seen[-3:]) == {torch.float32}


@pytest.mark.parametrize("gradient", [Implicit(), Unrolled(), Full()])
def test_an_iterated_block_in_parts(gradient):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            solver = FixedPointSolver(tol=1e-9, max_iters=60, gradient=gradient)
            self.block = FusionBlock(8, 2, 3, assim=partial(ProximalAssim, lam=0.7), solver=solver)

        def embed(self, part: torch.Tensor) -> dict[str, torch.Tensor]:
            mask = torch.ones(part.shape[:2], dtype=torch.bool)
            values = self.block(part[..., :8], mask).values.mean(1)
            return {"rows": F.normalize(values, dim=1), "ids": torch.arange(len(part))}

    model, parts = Model().double(), list(torch.randn(6, 5, 8).double().split(2))
    loss = InfoNCE().double()
    found = []
    for made in (
        joined([model.embed(p) for p in parts]),
        embed_in_parts(model, model.embed, parts),
    ):
        ids = torch.arange(6)
        found.append(
            gradients(model, loss(Rows(made["rows"], ids), Rows(made["rows"].flip(0), ids)))
        )
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_no_more_than_one_part_of_activations_at_a_time():
    """Saved tensors, in the largest number that lived at once."""

    class Live:
        now = most = 0

        def __init__(self, num: int) -> None:
            self.num = num
            Live.now += num
            Live.most = max(Live.most, Live.now)

        def __del__(self) -> None:
            Live.now -= self.num

    def pack(tensor):
        return tensor, Live(tensor.numel())

    net = nn.Sequential(nn.Linear(4, 200), *(nn.Tanh() for _ in range(10)))
    parts = list(torch.randn(64, 4).split(8))
    peaks = []
    for split in (False, True):
        Live.now = Live.most = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed[0]):
            embed = lambda part: {"rows": net(part)}  # noqa: E731
            made = embed_in_parts(net, embed, parts) if split else joined([embed(p) for p in parts])
            made["rows"].sum().backward()
        peaks.append(Live.most)
    assert peaks[0] > 64 * 200 * 10 and peaks[1] < peaks[0] / 7


def test_without_gradients_everything_runs_once():
    calls = []
    net = nn.Linear(4, 2)
    with torch.no_grad():
        made = embed_in_parts(
            net, lambda part: calls.append(0) or {"rows": net(part)}, [torch.ones(3, 4)] * 2
        )
    assert len(calls) == 2 and made["rows"].shape == (6, 2) and not made["rows"].requires_grad


def test_errors():
    net = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="no part of a batch"):
        embed_in_parts(net, lambda part: {}, [])
    net.weight.device_mesh = None  # as the parts of weights that FSDP splits
    with pytest.raises(ValueError, match="split over ranks"):
        embed_in_parts(net, lambda part: {}, [0])
