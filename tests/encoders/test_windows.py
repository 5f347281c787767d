import math

import pytest
import torch
from torch import Tensor

from encoders.windows import cut_windows, join_windows, timed_output


def batch(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.arange(1.0, max(lengths) + 1).expand(mask.shape).clone(), mask


@pytest.mark.parametrize("lengths", [(10, 3, 0), (8,), (1, 9), (0, 0, 5)])
def test_windows_end_to_end_are_the_sequence(lengths: tuple[int, ...]):
    inputs, mask = batch(*lengths)
    windows = cut_windows(inputs, mask, size=4)
    assert windows.lengths.min() >= 1 and len(windows.values) == int(windows.place.sum())
    joined = join_windows(windows.values.unsqueeze(-1), windows.place, mask)
    assert torch.equal(joined.squeeze(-1), inputs * mask)


def test_windows_overlap_and_hold_no_padding():
    inputs, mask = batch(10, 3)
    inputs[~mask] = math.nan
    windows = cut_windows(inputs, mask, size=4, overlap=2, shortest=3)
    assert windows.values.tolist() == [[1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 10], [1, 2, 3, 0, 0, 0]]
    assert windows.lengths.tolist() == [6, 6, 3]
    assert windows.place.tolist() == [[True, True, False], [True, False, False]]


def test_windows_of_frames_keep_their_channels():
    inputs = torch.randn(2, 7, 3)
    windows = cut_windows(inputs, torch.ones(2, 7, dtype=torch.bool), size=4)
    assert windows.values.shape == (4, 4, 3)
    assert torch.equal(windows.values[2], inputs[1, :4])


def test_pooled_tokens_are_means_of_real_ones():
    values = torch.tensor([[1.0, 2, 3, 4, 5], [6, 0, 0, 0, 0]]).unsqueeze(-1)
    mask = values.squeeze(-1) > 0
    out = timed_output(values, mask, seconds=0.02, pool=2)
    assert out.values.squeeze(-1).tolist() == [[1.5, 3.5, 5.0], [6.0, 0.0, 0.0]]
    assert out.mask.tolist() == [[True] * 3, [True, False, False]]
    torch.testing.assert_close(out.position[0, :, 0], torch.tensor([0.0, 0.04, 0.08]))
