"""Two GPUs with different modalities train as one process with the samples of both."""

import pytest
import torch

from tests.fusion.tasks import test_ranks
from tests.fusion.tasks.test_ranks import (  # noqa: F401  the same judgements
    test_a_bad_sample_on_one_rank_stops_the_step_of_all,
    test_a_strategy_that_waits_for_every_gradient_is_refused,
    test_ranks_draw_directions_alike_and_all_else_apart,
    test_ranks_that_align_alike_or_not_start_from_the_same_weights,
    test_the_bar_bites,
    test_two_ranks_train_as_one_process_with_all_samples,
)

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Gathered, ring and parts, in float64, through NCCL."""
    return test_ranks.drive(tmp_path_factory.mktemp("ranks"), "gpu")
