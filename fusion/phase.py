"""Complex vectors as real pairs, and position as their phase.

A vector of d real numbers is d/2 complex ones: the first half holds the real parts, the second
half the imaginary parts. So no complex dtype is needed (bf16, export, GPU kernels).

Shapes: B batch, N tokens, d width (even).
"""

import math

import torch
from torch import Tensor

# Shortest period of each axis: seconds, height and width of the picture. Slower channels follow
# in geometric steps up to SPREAD times as long, so that some of them hardly turn at all.
SHORTEST_PERIOD = (0.25, 1.0, 1.0)
SPREAD = 1000.0


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Complex product, channel by channel, of two vectors of real pairs (..., d)."""
    a, b = left.chunk(2, dim=-1)
    c, d = right.chunk(2, dim=-1)
    return torch.cat([a * c - b * d, a * d + b * c], dim=-1)


def rotor(values: Tensor, eta: float) -> Tensor:
    """Soft unit phasor u(c) = c / sqrt(eta^2 + |c|^2) of every channel.

    Smooth at zero, unlike the phase angle: its slope is at most 1/eta. As eta -> 0 it becomes
    e^{i arg c}.

    Args:
        values: (..., d) real pairs.
        eta: softness, above 0.

    Returns:
        (..., d) real pairs of modulus below 1.
    """
    real, imag = values.chunk(2, dim=-1)
    scale = torch.rsqrt(eta**2 + real.square() + imag.square())
    return torch.cat([real * scale, imag * scale], dim=-1)


def periods(num_channels: int, device: torch.device | None = None) -> Tensor:
    """The shift of position along its axis after which a channel has turned once.

    Channel c turns with axis c mod 3: seconds, row and column are dealt out in turn.

    Args:
        num_channels: number of complex channels, d/2.
        device: where the result is wanted.

    Returns:
        (num_channels,) float32, the same bits on every device.
    """
    counts = [-(-(num_channels - axis) // 3) for axis in range(3)]
    table = [
        SHORTEST_PERIOD[channel % 3] * SPREAD ** (channel // 3 / counts[channel % 3])
        for channel in range(num_channels)
    ]
    return torch.tensor(table, dtype=torch.float32).to(device, non_blocking=True)


def rotate(values: Tensor, position: Tensor, sign: int = 1) -> Tensor:
    """Turns each channel by an angle proportional to the token's position.

    The product of one rotated vector with the conjugate of another depends on the difference of
    their positions only; tokens at one instant are in phase across modalities.

    Whole turns are taken off before the angle is formed. The remainder of a division has no
    rounding error, so the phase is as good after hours as it is in the first second: what is left
    is how finely the dtype of `position` can tell a time (float32 at one hour: 0.1 ms).

    Args:
        values: (B, ..., N, d) real pairs.
        position: (B, N, 3): seconds, row and column, the latter as shares of the picture; finite,
            also where a token is not real.
        sign: 1 to turn, -1 to turn back.

    Returns:
        A tensor like `values`, of the same norms.
    """
    num_channels = values.shape[-1] // 2
    period = periods(num_channels, values.device)
    place = position.to(torch.promote_types(position.dtype, torch.float32))
    place = place.repeat(1, 1, num_channels // 3 + 1)[..., :num_channels]
    rest = torch.fmod(place, period.to(place.dtype))
    rest = rest.to(torch.promote_types(values.dtype, torch.float32))
    angle = sign * 2 * math.pi * (rest / period.to(rest.dtype))
    angle = angle.view(len(angle), *[1] * (values.dim() - 3), *angle.shape[1:])
    return multiply(values, torch.cat([angle.cos(), angle.sin()], dim=-1).to(values.dtype))
