"""Sensor series: `.npy` arrays of numbers over time.

Letters: T time steps, C channels.
"""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from datamodules.decode.error import DecodeError, expect, one_line
from datamodules.reasons import Reason

_KINDS = "fiu"  # numpy's letters for floating point, signed and unsigned integers


def decode_sensor(
    data: bytes, *, max_steps: int = 1_000_000, max_channels: int = 4096, max_bytes: int = 2**26
) -> Tensor:
    """Decode a `.npy` array of real numbers (T, C), or (T,) as one channel.

    The header is checked before an array is made, and pickled objects are never loaded. NaN is
    kept: it marks a missing value. Integers and float64 are rounded to float32.

    Args:
        data: the whole file.
        max_steps: most time steps.
        max_channels: most channels.
        max_bytes: most bytes of the float32 array.

    Returns:
        float32 (T, C).

    Raises:
        DecodeError: not such an array, empty, too large, cut off, or with infinite values.
    """
    expect(data, ("NPY",), "a sensor series")
    import numpy as np

    shape, size = _read_header(data)
    if 0 in shape:
        raise DecodeError(f"this series is empty: its shape is {shape}", Reason.EMPTY)
    steps, channels = shape[0], math.prod(shape[1:])
    if steps > max_steps:
        raise DecodeError(
            f"this series has {steps} steps, more than the limit of {max_steps}", Reason.TOO_LONG
        )
    if channels > max_channels or steps * channels * 4 > max_bytes:
        raise DecodeError(
            f"this series has {steps} x {channels} values, more than the limit of {max_channels} "
            f"channels or {max_bytes} bytes",
            Reason.TOO_LARGE,
        )
    if size != steps * channels:
        raise DecodeError(
            f"this series holds {size:g} values of the {steps * channels} that it claims",
            Reason.DAMAGED,
        )
    values = np.load(io.BytesIO(data), allow_pickle=False).reshape(steps, channels)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
        series = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if series.isinf().any():
        raise DecodeError("this series holds infinite values", Reason.NOT_FINITE)
    return series


def _read_header(data: bytes) -> tuple[tuple[int, ...], float]:
    """Shape, and how many values there are bytes for."""
    from numpy.lib import format as npy

    file = io.BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, _, dtype = readers[npy.read_magic(file)](file)
    except Exception as error:  # its header is a Python literal: some ten classes can come of it
        raise DecodeError(
            f"this NPY header is damaged ({one_line(error)})", Reason.DAMAGED
        ) from error
    if dtype.kind not in _KINDS or len(shape) not in (1, 2) or min(shape) < 0:
        raise DecodeError(
            f"this array is {dtype} of shape {shape}; wanted numbers of shape (T, C)",
            Reason.WRONG_FORMAT,
        )
    return shape, (len(data) - file.tell()) / dtype.itemsize
