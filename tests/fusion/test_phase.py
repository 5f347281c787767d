import pytest
import torch

from fusion.phase import frequencies, multiply, rotate, rotor

F64 = torch.float64


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


@pytest.mark.parametrize("axis", range(3))
def test_products_depend_on_relative_position_only(axis: int) -> None:
    a, b = torch.randn(2, 1, 1, 1, 24, dtype=F64)
    here, there = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[1.5, 4, 3]]])
    shift = torch.zeros(3)
    shift[axis] = 17.25

    def product(offset: torch.Tensor) -> torch.Tensor:
        left, right = rotate(a, here + offset), rotate(b, there + offset)
        return as_complex(left) * as_complex(right).conj()

    assert (product(shift) - product(torch.zeros(3))).abs().max() < 1e-10
    assert (rotate(a, here + shift) - rotate(a, here)).abs().max() > 0.1


def test_position_zero_changes_no_bit_and_each_axis_turns_its_own_channels() -> None:
    values = torch.randn(2, 3, 5, 12)
    assert torch.equal(rotate(values, torch.zeros(2, 5, 3)), values)
    table = frequencies(6, values)
    assert (table > 0).sum(dim=0).tolist() == [1] * 6
    assert (table > 0).sum(dim=1).tolist() == [2] * 3


def test_narrow_vectors_leave_late_axes_out() -> None:
    assert (frequencies(1, torch.zeros(1)) > 0).sum(dim=1).tolist() == [1, 0, 0]
