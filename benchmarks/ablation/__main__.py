"""Runs parts of the ablation and adds their results to a file of JSON lines.

    fusion data emoji-all --out shards
    python -m benchmarks.ablation travel film composed pointing changed occluded \\
        stamps --shard shards/emoji-all-000000.tar.gz --tokens runs/tokens --out runs/ablation.jsonl
    python -m benchmarks.ablation.table runs/ablation.jsonl

Runs that the file holds already are left out, so one that was cut off goes on. `--part 0/4` runs
every fourth run, for four GPUs; `--tiny` only shows that it runs.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.ablation import (
    changed,
    composed,
    drawings,
    emoji,
    film,
    occluded,
    pointing,
    retrieval,
    stamps,
    travel,
)
from benchmarks.ablation.fusions import FUSIONS

SEEDS = (0, 1, 2)
TINY = 3  # steps
VARIANTS = {"travel": travel.VARIANTS, "film": film.VARIANTS}
DRAWN = {"pointing": pointing, "changed": changed, "occluded": occluded}
TASKS = ("travel", "film", "composed", *DRAWN, "stamps")


def main(arguments: list[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--shard", type=Path, help="of fusion data emoji-all, for emoji")
    parser.add_argument("--tokens", type=Path, help="folder for the tokens of frozen towers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", help="only those; all if not given")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if {*args.tasks} - {"travel", "stamps"} and args.shard is None:
        parser.error("the tasks on emoji need --shard, made by fusion data emoji-all")
    if {*args.tasks} - {"travel", "composed"} and args.tokens is None:
        parser.error("the tasks on frozen towers need --tokens, a folder")
    prepared = prepare(args.tasks, args.shard, args.tokens, device, args.tiny)
    done = finished(args.out)
    runs = [
        (task, variant, seed)
        for task in args.tasks
        for seed in SEEDS
        for variant in VARIANTS.get(task, FUSIONS)
        if not args.variants or variant in args.variants
    ]
    number, count = map(int, args.part.split("/"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for task, variant, seed in runs[number::count]:  # the same parts however much is done
        if (task, variant, seed) in done:
            continue
        found = prepared[task](variant, seed)
        line: dict[str, Any] = {"task": task, "variant": variant, "seed": seed}
        line |= {"hardware": machine(task, device), **found}
        print(json.dumps(line), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def finished(out: Path) -> set[tuple[str, str, int]]:
    """Task, variant and seed of the runs in a file."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {(run["task"], run["variant"], run["seed"]) for run in map(json.loads, lines)}


def prepare(
    tasks: list[str], shard: Path, tokens: Path, device: str, tiny: bool
) -> dict[str, Callable[[str, int], dict[str, Any]]]:
    """Reads what the tasks need; gives what each finds for a variant and a seed."""

    def steps(module: Any) -> int:
        return TINY if tiny else module.STEPS

    runs: dict[str, Callable[[str, int], dict[str, Any]]] = {
        "travel": partial(travel.run, device=device, steps=steps(travel))
    }
    if "composed" in tasks:
        data = emoji.load(shard)
        runs["composed"] = partial(composed.run, device=device, data=data, steps=steps(composed))
    if {*tasks} & {"film", *DRAWN}:
        drawn = drawings.load(shard, tokens)
        runs["film"] = partial(film.run, data=drawn, steps=steps(film))
        for name in {*tasks} & {*DRAWN}:
            task = DRAWN[name].task(drawn, steps(DRAWN[name]))
            runs[name] = partial(retrieval.run, task=task)
    if "stamps" in tasks:
        task = stamps.task(stamps.SHARD, tokens, steps(stamps))
        runs["stamps"] = partial(retrieval.run, task=task)
    return runs


def machine(task: str, device: str) -> str:
    """What a run ran on."""
    if device == "cuda" and task in ("travel", "composed"):
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread of {measure.hardware('cpu')['cpu']}"


if __name__ == "__main__":
    main()
