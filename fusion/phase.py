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


def frequencies(num_channels: int, like: Tensor) -> Tensor:
    """Angular frequency of every channel along every axis.

    Channels are dealt to seconds, row and column in turn; each channel turns with one axis.

    Args:
        num_channels: number of complex channels, d/2.
        like: tensor that gives dtype and device.

    Returns:
        (3, num_channels) radians per second, picture height and picture width.
    """
    channel = torch.arange(num_channels, device=like.device)
    table = torch.zeros(3, num_channels, dtype=like.dtype, device=like.device)
    for axis, period in enumerate(SHORTEST_PERIOD):
        own = channel[axis::3]
        rank = torch.arange(len(own), dtype=like.dtype, device=like.device)
        table[axis, own] = 2 * math.pi / period * SPREAD ** (-rank / max(len(own), 1))
    return table


def rotate(values: Tensor, position: Tensor, sign: int = 1) -> Tensor:
    """Turns each channel by an angle proportional to the token's position.

    The product of one rotated vector with the conjugate of another depends on the difference of
    their positions only; tokens at one instant are in phase across modalities.

    Args:
        values: (B, ..., N, d) real pairs.
        position: (B, N, 3): seconds, row and column, the latter as shares of the picture.
        sign: 1 to turn, -1 to turn back.

    Returns:
        A tensor like `values`, of the same norms.
    """
    precise = position.to(torch.promote_types(values.dtype, torch.float32))
    angle = precise @ frequencies(values.shape[-1] // 2, precise)
    batch, num_tokens, _ = angle.shape
    angle = sign * angle.view(batch, *[1] * (values.dim() - 3), num_tokens, -1)
    return multiply(values, torch.cat([angle.cos(), angle.sin()], dim=-1).to(values.dtype))
