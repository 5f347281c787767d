import io
import pickle

import numpy as np
import pytest
import torch

from datamodules.decode import DecodeError, decode_sensor
from datamodules.reasons import Reason


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def claiming(shape: str, descr: str = "'<f4'", body: bytes = bytes(64), version=1) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    size = len(head).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + body


@pytest.mark.parametrize(
    "kind", ["<f2", "<f4", ">f4", "<f8", "i1", "<i2", ">i4", "<i8", "u1", "<u2"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_kinds_of_numbers(kind, order):
    array = np.arange(12).reshape(4, 3).astype(kind, order=order)
    series = decode_sensor(npy(array))
    assert series.dtype == torch.float32 and series.is_contiguous()
    assert torch.equal(series, torch.arange(12.0).reshape(4, 3))


def test_one_channel_and_missing_values():
    series = decode_sensor(npy(np.array([1.0, np.nan, 3.0])))
    assert series.shape == (3, 1) and series.isnan().tolist() == [[False], [True], [False]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"1,2,3", Reason.WRONG_FORMAT),
        (pickle.dumps([1.0]), Reason.WRONG_FORMAT),
        (npy(np.zeros((0, 3))), Reason.EMPTY),
        (npy(np.zeros((3, 0))), Reason.EMPTY),
        (npy(np.zeros((2, 2, 2))), Reason.WRONG_FORMAT),
        (npy(np.array(1.0)), Reason.WRONG_FORMAT),
        (npy(np.zeros(3, complex)), Reason.WRONG_FORMAT),
        (npy(np.array(["a"])), Reason.WRONG_FORMAT),
        (npy(np.zeros(3, [("a", "f4")])), Reason.WRONG_FORMAT),
        (npy(np.array([{}, {}]), allow_pickle=True), Reason.WRONG_FORMAT),
        (npy(np.array([np.inf])), Reason.NOT_FINITE),
        (npy(np.array([1e300])), Reason.NOT_FINITE),
        (npy(np.zeros((4, 3)))[:-1], Reason.DAMAGED),
        (npy(np.zeros((4, 3))) + b"\0", Reason.DAMAGED),
        (claiming("(2, 3)"), Reason.DAMAGED),
        (claiming("(-2, 3)"), Reason.WRONG_FORMAT),
        (claiming("(2, 'a')"), Reason.DAMAGED),
        (claiming("(1000001,)"), Reason.TOO_LONG),
        (claiming("(9" + "9" * 40 + ",)"), Reason.TOO_LONG),
        (claiming("(2, 4097)"), Reason.TOO_LARGE),
        (claiming("(1000000, 4096)"), Reason.TOO_LARGE),
        (claiming("__import__('os').abort()"), Reason.DAMAGED),
        (claiming("(" * 5000), Reason.DAMAGED),
        (claiming("(16,)", version=3), Reason.DAMAGED),
        (b"\x93NUMPY\x01\x00\xff\xff", Reason.DAMAGED),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", Reason.DAMAGED),
    ],
)
def test_what_is_refused(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode_sensor(data)
    assert caught.value.reason is reason, str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_are_what_refuses():
    data = npy(np.zeros((8, 2), np.float32))
    assert decode_sensor(data, max_steps=8, max_channels=2, max_bytes=64).shape == (8, 2)
    for limits in ({"max_steps": 7}, {"max_channels": 1}, {"max_bytes": 63}):
        with pytest.raises(DecodeError, match="limit"):
            decode_sensor(data, **limits)


def test_only_our_error_escapes_mutated_files():
    random = np.random.default_rng(0)
    data = np.frombuffer(npy(random.normal(size=(50, 4))), np.uint8)
    num_refused = 0
    for _ in range(500):
        mutated = data.copy()
        mutated[random.integers(6, 128, size=3)] = random.integers(0, 256, size=3)
        try:
            decode_sensor(mutated.tobytes())
        except DecodeError:
            num_refused += 1
    assert num_refused > 100
