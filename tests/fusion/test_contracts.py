"""What every Assim and every Accom must satisfy; a new variant is found and tested by itself."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import fusion.accom
import fusion.assim
from fusion import Accom, Assim, FixedPointSolver, FusionBlock, SlotAccom
from fusion.solver import Full, Unrolled

DIM, NUM_HEADS, NUM_SLOTS = 16, 2, 3
F64 = torch.float64


def leaves(package, base: type) -> list[type]:
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")

    def below(parent: type) -> Iterator[type]:
        for child in parent.__subclasses__():
            if not inspect.isabstract(child) and child.__module__.startswith(package.__name__):
                yield child
            yield from below(child)

    return sorted(set(below(base)), key=lambda leaf: leaf.__name__)


ASSIMS = leaves(fusion.assim, Assim)
ACCOMS = leaves(fusion.accom, Accom)
pairs = pytest.mark.parametrize(
    ("assim", "accom"),
    list(product(ASSIMS, ACCOMS)),
    ids=lambda leaf: leaf.__name__,
)


def make_block(
    assim, accom, seed: int = 0, solver: FixedPointSolver = FixedPointSolver()
) -> FusionBlock:
    """A block whose residual branches are strong, so that all of it shows."""
    torch.manual_seed(seed)
    block = FusionBlock(DIM, NUM_HEADS, NUM_SLOTS, assim=assim, accom=accom, solver=solver)
    for weight in (block.out.weight, block.mlp.shrink.weight):
        nn.init.normal_(weight, std=0.3)
    return block


# Few rounds, all of them differentiable: an update with memory sees its anchors in the first state
# only, and one that is chaotic (the literal rule) doubles rounding errors in every round.
SHORT = FixedPointSolver(max_iters=8, gradient=Full())


def make_input(batch: int = 4, num_tokens: int = 6, dtype=torch.float32):
    values = torch.randn(batch, num_tokens, DIM, dtype=dtype)
    mask = torch.rand(batch, num_tokens) > 0.3
    mask[:, 0] = True
    mask[-1] = False
    position = 5 * torch.rand(batch, num_tokens, 3)
    return values, mask, position


def same_bits(left, right) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in [
            (left.values, right.values),
            (left.context, right.context),
            *zip(left.stats, right.stats, strict=True),
        ]
    )


def test_every_variant_is_found_and_importable_from_its_package() -> None:
    assert ASSIMS and ACCOMS
    for package, variants in ((fusion.assim, ASSIMS), (fusion.accom, ACCOMS)):
        assert {variant.__name__ for variant in variants} <= set(package.__all__)


@pytest.mark.parametrize("base", [Assim, Accom])
def test_bases_have_one_abstract_method(base: type) -> None:
    assert base.__abstractmethods__ == {"forward"}


@pairs
def test_shapes_and_a_block_that_starts_as_the_identity(assim, accom) -> None:
    block = make_block(assim, accom)
    values, mask, position = make_input()
    assert not torch.equal(block(values, mask, position).values, values)
    block.start_as_identity()
    out = block(values, mask, position)
    assert torch.equal(out.values, values)
    num_slots = out.slots.shape[2]
    assert num_slots == NUM_SLOTS or accom is not SlotAccom
    assert out.context.shape == (4, num_slots, DIM) and out.context.isfinite().all()
    assert out.context[:-1].abs().sum() > 0 and not out.context[-1].any()
    assert all(entry.shape == (4,) for entry in out.stats[:-1])
    assert out.stats.trace.shape[1:] == (4,)
    assert not any(entry.isnan().any() for entry in out.stats if entry.is_floating_point())


@pairs
def test_what_padding_holds_changes_no_bit(assim, accom) -> None:
    block = make_block(assim, accom)
    values, mask, position = make_input()
    reference = block(values, mask, position)
    for junk in (0.0, 1e6, float("nan"), float("inf")):
        dirty = torch.where(mask.unsqueeze(-1), values, junk)
        moved = torch.where(mask.unsqueeze(-1), position, junk)
        out = block(dirty, mask, moved)
        real = torch.where(mask.unsqueeze(-1), out.values, reference.values)
        assert same_bits(out._replace(values=real), reference)
        padding = out.values[~mask]
        assert torch.equal(padding, dirty[~mask]) or (padding.isnan().all() and junk != junk)


@pairs
def test_junk_in_padding_reaches_no_gradient(assim, accom) -> None:
    block = make_block(assim, accom, solver=SHORT)
    values, mask, position = make_input()
    values = torch.where(mask.unsqueeze(-1), values, float("nan")).requires_grad_()
    out = block(values, mask, position)
    (out.values[mask].square().sum() + out.context.square().sum()).backward()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pairs
def test_permuting_tokens_permutes_the_output(assim, accom) -> None:
    if accom.ordered:
        pytest.skip("declares that order matters")
    block = make_block(assim, accom, solver=SHORT).double()
    values, mask, position = make_input(dtype=F64)
    order = torch.randperm(values.shape[1])
    straight = block(values, mask, position)
    permuted = block(values[:, order], mask[:, order], position[:, order])
    assert (permuted.values - straight.values[:, order]).abs().max() < 1e-6
    if permuted.context.shape[1] == len(order):  # one slot a token: they move along
        straight = straight._replace(context=straight.context[:, order])
    assert (permuted.context - straight.context).abs().max() < 1e-6


@pairs
def test_gradient_reaches_every_parameter(assim, accom) -> None:
    block = make_block(assim, accom, solver=SHORT)
    values, mask, position = make_input()
    out = block(values.requires_grad_(), mask, position)
    (out.values * torch.randn_like(out.values)).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert values.grad is not None
    assert (values.grad[mask].abs().sum(dim=-1) > 0).all()


@pairs
def test_gradients_are_those_of_finite_differences(assim, accom) -> None:
    unroll = FixedPointSolver(max_iters=0, gradient=Unrolled(4))
    block = make_block(assim, accom, solver=unroll).double()
    values, mask, position = make_input(2, 3, dtype=F64)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def function(values: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights = dict(zip(names, parameters, strict=True))
        out = torch.func.functional_call(block, weights, (values, mask, position))
        return out.values, out.context

    inputs = [tensor.detach().requires_grad_() for tensor in (values, *parameters)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


MAGNITUDES = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 31, dtype=F64).float()])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pairs
def test_any_magnitude_gives_finite_values_and_gradients(assim, accom, dtype) -> None:
    block = make_block(assim, accom, solver=FixedPointSolver(max_iters=3))
    values = (torch.randn(32, 4, DIM) * MAGNITUDES[:, None, None]).requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = block(values, torch.ones(32, 4, dtype=torch.bool), torch.rand(32, 4, 3))
        (out.values.float().square().mean() + out.context.square().mean()).backward()
    assert out.values.isfinite().all() and out.context.isfinite().all()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pairs
def test_state_dict_round_trip(assim, accom) -> None:
    block, other = make_block(assim, accom, seed=0), make_block(assim, accom, seed=1)
    values, mask, position = make_input()
    assert not same_bits(block(values, mask, position), other(values, mask, position))
    other.load_state_dict(block.state_dict())
    assert same_bits(block(values, mask, position), other(values, mask, position))


@pairs
def test_a_sample_does_not_see_its_neighbours(assim, accom) -> None:
    block = make_block(assim, accom)
    values, mask, position = make_input(batch=8)
    mask[-1] = True
    wild = values * torch.tensor([1, 1e-6, 1e3, 1, 1e8, 1, 0, 1]).view(-1, 1, 1)
    wild[5] = float("nan")
    crowd = block(wild, mask, position)
    for index in range(8):
        lonely = torch.zeros_like(mask)
        lonely[index] = mask[index]
        alone = block(wild, lonely, position)
        assert torch.equal(alone.values[index].nan_to_num(), crowd.values[index].nan_to_num())
        assert torch.equal(alone.context[index], crowd.context[index]) or index == 5
        for a, b in zip(alone.stats[:-1], crowd.stats[:-1], strict=True):
            assert torch.equal(a[index], b[index])


@pairs
def test_declared_contraction_and_mixing_hold(assim, accom) -> None:
    """The q that an Assim declares is not exceeded, and an Accom does not stretch."""
    for seed in range(10):
        block = make_block(assim, accom, seed=seed).double()
        values, mask, position = make_input(dtype=F64)
        choice = block.choose(values, mask, position)
        start = choice.start()
        real = choice.real(start)[:, None, :, None]
        left, right = ((start + 0.3 * torch.randn_like(start)) * real for _ in range(2))
        gap = largest(left - right)
        moved = largest((choice.step(left) - choice.step(right)) * real)
        allowed = (choice.q * gap).nan_to_num(nan=math.inf)  # an unknown factor, no gap
        assert (moved <= allowed + 1e-12).all()
        if choice.mixing.frozen:
            tokens = torch.randn_like(choice.anchors) * mask[:, None, :, None]
            weights = choice.mixing.weigh(tokens, start)
            seen = largest(weights.read(weights.gather(tokens)))
            assert (seen <= choice.mixing.stretch * largest(tokens) + 1e-12).all()


@pairs
def test_declared_energy_never_rises(assim, accom) -> None:
    for seed in range(5):
        choice = make_block(assim, accom, seed=seed).double().choose(*make_input(dtype=F64))
        state = choice.start()
        before = choice.energy(state)
        if before is None:
            pytest.skip("declares no energy")
        for _ in range(12):
            state = choice.step(state)
            after = choice.energy(state)
            assert after is not None and (after <= before + 1e-12 * (1 + before.abs())).all()
            before = after


@pairs
def test_declared_depth_is_the_number_of_rounds_to_the_exact_state(assim, accom) -> None:
    choice = make_block(assim, accom).double().choose(*make_input(dtype=F64))
    if choice.depth is None:
        pytest.skip("declares no finite termination")
    state = choice.start()
    for _ in range(int(choice.depth.max()) + 1):
        state = choice.step(state)
    assert torch.equal(choice.step(state), state)


def test_each_guarantee_is_declared_by_some_pair() -> None:
    """Else the tests above would hold for want of cases."""
    kinds = set()
    for assim, accom in product(ASSIMS, ACCOMS):
        choice = make_block(assim, accom).double().choose(*make_input(dtype=F64))
        kinds |= {"q"} if (choice.q < 1).all() else set()
        kinds |= {"energy"} if choice.energy(choice.start()) is not None else set()
        kinds |= {"depth"} if choice.depth is not None else set()
        kinds |= {"none"} if choice.q.isinf().all() else set()
    assert kinds == {"q", "energy", "depth", "none"}


def largest(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=-1).amax(dim=(1, 2))
