"""The parity table on GPUs: `Gathered`, `Ring`, accumulation, dropout; within 1e-10 in float64."""

import pytest
import torch

from tests.fusion.parity_cases import RIGHT, cases
from tests.fusion.test_parity import judge, measure


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_those_of_one_big_batch_on_one_gpu(ranks, tmp_path):
    if torch.cuda.device_count() < ranks:
        pytest.skip("needs two CUDA GPUs")
    found = measure(tmp_path, ranks, device="cuda")
    for method in RIGHT[ranks]:
        largest = max(found[str(case)] for case in cases(ranks) if case.method == method)
        print(f"{ranks} GPUs, {method}: {largest:.1e}")
    judge(found, ranks)
