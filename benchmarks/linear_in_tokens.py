"""Time of one round of the default block against the number of tokens, and its log-log slope.

`python -m benchmarks.linear_in_tokens --out FILE.json`, on the GPU if there is one; ends with
status 1 if the slope is not 1 within `BAR`.

Letters: B batch, N tokens of a sample, D width.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import hardware, milliseconds
from fusion.block import FusionBlock

BAR = 0.15
DIM = 256
COUNTS = (4096, 8192, 16384, 32768, 65536)
BATCH = 32  # so that at the fewest tokens already the anchors are larger than a GPU's L2 cache
WARM_UP, REPEATS = 5, 30


@torch.no_grad()
def round_milliseconds(num_tokens: int, batch: int, device: str) -> float:
    """Median time of a round, anchors and weights being chosen."""
    torch.manual_seed(0)
    block = FusionBlock(DIM).to(device).eval()
    values = torch.randn(batch, num_tokens, DIM, device=device)
    choice = block.choose(values, torch.ones(batch, num_tokens, dtype=torch.bool, device=device))
    del values
    state = choice.start()
    if device == "cuda":
        return _by_events(lambda: choice.step(state))
    return milliseconds([lambda: choice.step(state)], REPEATS, device)[0]


def _by_events(work: Callable[[], object]) -> float:
    """Median of times that the GPU takes itself, without those of launching."""
    for _ in range(WARM_UP):
        work()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for start, end in marks:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def slope(counts: Sequence[int], taken: Sequence[float]) -> float:
    """Least squares slope of log time against log count."""
    return float(np.polyfit(np.log(counts), np.log(taken), 1)[0])


def main(arguments: Sequence[str] | None = None) -> float:
    """The command; returns the slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--batch", type=int, default=BATCH, help="samples")
    parser.add_argument("--tokens", type=int, nargs="+", default=COUNTS, help="two counts or more")
    parser.add_argument("--out", type=Path, help="a .json file")
    given = parser.parse_args(arguments)
    rows = []
    for num_tokens in given.tokens:
        taken = round_milliseconds(num_tokens, given.batch, given.device)
        rows.append({"tokens": num_tokens, "ms": taken})
        print(f"N = {num_tokens:6d}: {taken:9.4f} ms a round", flush=True)
    found = slope(given.tokens, [row["ms"] for row in rows])
    print(f"slope {found:.3f}; linear is 1 +- {BAR}")
    if given.out is not None:
        record = {"hardware": hardware(given.device), "batch": given.batch, "dim": DIM}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(
            json.dumps({**record, "rounds": rows, "slope": found}, indent=1) + "\n"
        )
    return found


if __name__ == "__main__":
    sys.exit(abs(main() - 1) > BAR)
