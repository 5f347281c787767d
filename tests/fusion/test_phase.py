import math

import pytest
import torch

from fusion.phase import multiply, periods, rotate, rotor

F64 = torch.float64
HOUR = 3600.0


def as_complex(values: torch.Tensor) -> torch.Tensor:
    return torch.complex(*values.chunk(2, dim=-1))


def test_multiply_is_the_complex_product() -> None:
    a, b = torch.randn(2, 3, 8, dtype=F64)
    assert torch.allclose(as_complex(multiply(a, b)), as_complex(a) * as_complex(b))


def test_rotor_tends_to_the_unit_phasor() -> None:
    values = torch.randn(5, 8, dtype=F64)
    unit = as_complex(values) / as_complex(values).abs()
    assert (as_complex(rotor(values, 1e-9)) - unit).abs().max() < 1e-12
    assert as_complex(rotor(1e6 * values, 1.0)).abs().max() <= 1


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-20, 1e-3, 1e3])
def test_rotor_is_finite_and_smooth_near_zero(scale: float) -> None:
    values = (scale * torch.ones(4)).requires_grad_()
    rotor(values, 0.5).sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert values.grad.abs().max() <= 2 / 0.5


def test_dividing_by_the_modulus_would_give_nan_at_zero() -> None:
    """Negative control: what eta protects from."""
    values = torch.zeros(4, requires_grad=True)
    (values / values.norm()).sum().backward()
    assert values.grad is not None and values.grad.isnan().any()


def test_rotation_keeps_norms_and_is_undone_by_the_other_sign() -> None:
    values = torch.randn(2, 3, 5, 16, dtype=F64)
    position = 100 * torch.rand(2, 5, 3)
    turned = rotate(values, position)
    assert torch.allclose(as_complex(turned).abs(), as_complex(values).abs(), rtol=1e-12)
    assert (rotate(turned, position, sign=-1) - values).abs().max() < 1e-12
    assert (turned - values).abs().max() > 0.5


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Each channel of the one times the conjugate of the other's."""
    return as_complex(left) * as_complex(right).conj()


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_products_depend_on_relative_position_only(axes: tuple[int, ...]) -> None:
    """Positions in one dimension (sound, text), two (pictures) and three (video)."""
    a, b = torch.randn(2, 1, 1, 7, 24, dtype=F64)
    here, there, shift = torch.zeros(3, 1, 7, 3, dtype=F64)
    for axis in axes:
        here[..., axis], there[..., axis] = 9 * torch.rand(2, 1, 7, dtype=F64)
        shift[..., axis] = 17.3
    moved = product(rotate(a, here + shift), rotate(b, there + shift))
    assert (moved - product(rotate(a, here), rotate(b, there))).abs().max() < 1e-10
    assert (rotate(a, here + shift) - rotate(a, here)).abs().max() > 0.1
    for axis in range(3):  # an axis turns its own channels only
        still = as_complex(rotate(a, shift) - a)[..., axis::3].abs().amax(dim=-1)
        assert ((still > 0.1) if axis in axes else (still == 0)).all()


def test_sound_and_video_of_one_instant_are_in_phase() -> None:
    sound, video = torch.zeros(1, 500, 3), torch.rand(1, 250, 3)
    sound[..., 0] = HOUR + torch.arange(500) * 0.02
    video[..., 0] = HOUR + torch.arange(250) * 0.04
    by_sound = rotate(torch.ones(1, 500, 48), sound)[:, ::2]
    by_video = rotate(torch.ones(1, 250, 48), video)
    seconds = torch.arange(24) % 3 == 0
    assert torch.equal(by_sound[..., seconds.repeat(2)], by_video[..., seconds.repeat(2)])
    gap = product(by_sound, by_video).angle().abs()
    assert gap[..., seconds].max() < 1e-6 and gap[..., ~seconds].max() > 0.1
    assert product(by_sound[:, 1:], by_video[:, :-1])[..., seconds].angle().abs().max() > 0.9


def long_recording() -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and 64 s of positions at one hour that float32 holds exactly."""
    position = torch.zeros(1, 2048, 3)
    position[..., 0] = HOUR + torch.arange(2048) / 32
    return torch.randn(1, 2048, 48), position


def test_an_hour_does_not_cost_the_phase_in_float32() -> None:
    values, position = long_recording()
    exact = rotate(values.double(), position.double())
    assert product(rotate(values, position), exact).angle().abs().max() < 2e-6
    neighbours = rotate(torch.ones(1, 2048, 48), position)
    steps = product(neighbours[:, 1:], neighbours[:, :-1])
    assert (steps * steps[:, :1].conj()).angle().abs().max() < 2e-6


def test_time_times_frequency_would_lose_it() -> None:
    """Negative control: the angle of an hour without taking the whole turns off."""
    _, position = long_recording()
    period = periods(24)[::3]
    angle = position[..., :1] * (2 * math.pi / period)
    exact = position[..., :1].double() * (2 * math.pi / period.double())
    assert (angle - exact).abs().max() > 1e-3


def test_float64_positions_are_used_in_full() -> None:
    values, position = torch.ones(1, 1, 48), torch.zeros(1, 1, 3, dtype=F64)
    position[..., 0] = HOUR + 0.0123
    exact = rotate(values.double(), position)
    assert product(rotate(values, position), exact).angle().abs().max() < 2e-6
    rounded = product(rotate(values, position.float()), exact).angle().abs().max()
    assert 1e-4 < rounded < 2 * math.pi / 0.25 * 0.13e-3  # float32 tells 0.24 ms at one hour


def test_bfloat16_values_are_turned_by_exact_angles() -> None:
    values, position = long_recording()
    turned = rotate(values.bfloat16(), position)
    assert turned.dtype == torch.bfloat16
    exact = rotate(values.bfloat16().double(), position.double())
    assert ((turned - exact).abs() <= 0.02 * values.abs().max()).all()
    coarse = rotate(values, position.bfloat16())  # 16 s apart, yet no lower precision inside
    assert torch.equal(coarse, rotate(values, position.bfloat16().float()))


def test_gradients_with_respect_to_position_are_those_of_the_angle() -> None:
    values = torch.randn(1, 2, 4, 12, dtype=F64)
    position = HOUR + 10 * torch.randn(1, 4, 3, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda where: rotate(values, where), position.requires_grad_(), eps=1e-7, atol=1e-5
    )
    for place in (0.0, 0.25, -0.25, HOUR, 1e30):
        where = torch.full((1, 4, 3), place, requires_grad=True)
        (rotate(values.float(), where) * torch.randn(1, 2, 4, 12)).sum().backward()
        assert where.grad is not None and where.grad.isfinite().all() and where.grad.any()


def test_a_position_that_is_not_finite_spoils_its_own_token_only() -> None:
    """The caller clears the positions of tokens that are not real; so does the block."""
    values, position = torch.randn(2, 3, 5, 12), torch.rand(2, 5, 3)
    reference = rotate(values, position)
    for junk in (math.nan, math.inf):
        position[0, 1, 0] = junk
        turned = rotate(values, position)
        assert turned[0, :, 1].isnan().any(dim=-1).all()
        turned[0, :, 1] = reference[0, :, 1]
        assert torch.equal(turned, reference)


def test_position_zero_changes_no_bit() -> None:
    values = torch.randn(2, 3, 5, 12)
    assert torch.equal(rotate(values, torch.zeros(2, 5, 3)), values)


def test_periods_rise_from_the_shortest_of_each_axis() -> None:
    table = periods(12)
    assert table[:3].tolist() == [0.25, 1.0, 1.0]
    for axis in range(3):
        ratios = table[axis::3][1:] / table[axis::3][:-1]
        assert torch.allclose(ratios, torch.full((3,), 1000 ** (1 / 4)))


@pytest.mark.parametrize("num_channels", range(1, 8))
def test_narrow_vectors_leave_late_axes_out(num_channels: int) -> None:
    assert periods(num_channels).shape == (num_channels,)
    values, position = torch.randn(1, 2, 2 * num_channels), torch.rand(1, 2, 3)
    turned = rotate(values, position)
    assert turned.shape == values.shape
    position[..., num_channels:] = 7.7
    assert torch.equal(rotate(values, position), turned)
