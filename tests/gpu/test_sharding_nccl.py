"""Weights that are split over two GPUs train as on one process."""

import pytest
import torch

from tests.fusion.tasks import test_sharding
from tests.fusion.tasks.test_sharding import (  # noqa: F401  the same judgements
    BAR,
    test_a_bad_sample_on_one_rank_stops_the_step_of_all,
    test_the_bar_bites,
    test_two_ranks_with_half_of_the_weights_train_as_one_process,
    test_what_does_not_work_is_refused_in_a_sentence,
    worst,
)

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """In float64, through NCCL."""
    return test_sharding.drive(tmp_path_factory.mktemp("split"), "gpu")


def test_a_run_goes_on_from_a_checkpoint(found):
    """To rounding: a GPU does not add in one order."""
    resumed, unbroken = (found[0][case][0]["weights"] for case in ("resumed", "two"))
    assert len(resumed) == 1
    assert worst(resumed[-1], unbroken[-1]) < BAR < worst(unbroken[-2], unbroken[-1])
