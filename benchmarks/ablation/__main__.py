"""Runs parts of the ablation and adds their results to a file of JSON lines.

    fusion data emoji-all --out shards
    python -m benchmarks.ablation travel composed --shard shards/emoji-all-000000.tar.gz \\
        --out runs/ablation.jsonl
    python -m benchmarks.ablation.table runs/ablation.jsonl

`--part 0/4` runs every fourth run, for four GPUs; `--tiny` only shows that it runs.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch

from benchmarks.ablation import composed, emoji, travel
from benchmarks.ablation.fusions import FUSIONS

SEEDS = (0, 1, 2)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=("travel", "composed"))
    parser.add_argument("--shard", type=Path, help="of fusion data emoji-all, for composed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", help="only those; all if not given")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    runs = [
        (task, variant, seed)
        for task in args.tasks
        for seed, variant in product(SEEDS, travel.VARIANTS if task == "travel" else FUSIONS)
        if not args.variants or variant in args.variants
    ]
    number, count = map(int, args.part.split("/"))
    data = emoji.load(args.shard) if "composed" in args.tasks else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for task, variant, seed in runs[number::count]:
        if task == "travel":
            found = travel.run(variant, seed, device, 3 if args.tiny else travel.STEPS)
        else:
            assert data is not None
            found = composed.run(variant, seed, device, data, 3 if args.tiny else composed.STEPS)
        line = {"task": task, "variant": variant, "seed": seed, "hardware": hardware, **found}
        print(json.dumps(line), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
