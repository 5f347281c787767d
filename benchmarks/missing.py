"""Recall when half of the inputs are absent, beside models trained for what remains.

    python -m benchmarks.missing                # three seeds, some minutes each on one core
    python -m benchmarks.missing --tiny --out DIR

Stamps of the sample data, with frozen towers for pictures and words and a tower from scratch for
speech. A query is a picture with its spoken name, the targets are captions. At test one of the two
is taken from every query at random. What remains is searched with one model that was trained for
all subsets, and with two models that were each trained for one subset alone, as many steps. Writes
`missing-cpu`, as .json and as .md, into `benchmarks/results`.
"""

import argparse
import datetime
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from benchmarks.measure import hardware
from datamodules.memory import MemoryDataModule
from fusion.cli.quickstart import sample_shards
from fusion.evaluation import asked
from fusion.ranking import rank_queries
from fusion.scorecard import Collector, HeldOut
from fusion.scorecard.robustness import draw_kept, remaining_rows
from fusion.tasks import ContrastiveTask

RESULTS = Path(__file__).parent / "results"
IMAGE, AUDIO, BOTH = "image->text", "audio->text", "image+audio->text"
QUERY, CUTOFFS = ("image", "audio"), (1, 10)
TRAINED: dict[str, tuple[list[str], float]] = {  # directions, and the share of inputs hidden
    "all subsets": ([IMAGE, AUDIO, BOTH], 0.0),
    "whole queries only": ([BOTH], 0.0),
    "whole queries, half of inputs hidden": ([BOTH], 0.5),
    "image alone": ([IMAGE], 0.0),
    "audio alone": ([AUDIO], 0.0),
}
REFERENCE, BAR = "one model for each subset", 2.0
HEAD = """# Recall when half of the inputs are absent

Measured {date} on {hardware}; {minutes:.0f} minutes. Stamps of the sample data, split by caption: \
{train} samples to train on and {queries} queries with the last of {seeds} seeds; {steps} steps \
of {batch}. Queries are a picture and its spoken name, targets captions; one of the two is absent \
from every query, at random. Recall in %, mean over seeds; +- is the standard deviation over seeds.

"""
Outcome = dict[str, dict[str, float]]


def train(
    directions: Sequence[str], hidden: float, seed: int, data: MemoryDataModule | None, given: Any
) -> tuple[ContrastiveTask, MemoryDataModule]:
    """One model.

    Args:
        directions: each is trained at every step.
        hidden: share of a query's inputs that training hides.
        seed: of the split, the weights and the order.
        data: of an earlier model of this seed, whose samples are prepared already.
        given: the command's arguments.
    """
    text = resources.files("fusion.cli").joinpath("quickstart.yaml").read_text()
    settings = yaml.safe_load(text)
    # Spoken names are short, and what is compared needs no wide tower.
    settings["model"]["encoders"]["audio"]["init_args"] = {"dim": 128, "max_seconds": 2.0}
    config = {
        "seed_everything": seed,
        "model": {
            "model": settings["model"],
            "cache": given.cache,
            "loss": settings["contrastive"]["loss"],
            "lr": settings["contrastive"]["lr"],
            "align": {"reference": "text", "num_steps": given.align_steps, "batch_size": 512},
            "directions": dict.fromkeys(directions, 1.0),
            "pairing": {"hidden": hidden},
        },
        "data": {
            "train": sample_shards()[:1],  # stamps, which alone have speech
            "held_out": given.held_out,
            "batch_size": given.batch,
            "seed": seed,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": given.steps,
            "limit_val_batches": 0,
            "logger": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
    }
    cli = LightningCLI(
        ContrastiveTask, MemoryDataModule, args=config, run=False, save_config_callback=None
    )
    if data is not None:
        cli.datamodule.train_samples = data.train_samples
        cli.datamodule.val_samples = data.val_samples
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli.model, cli.datamodule


def embed(task: ContrastiveTask, data: MemoryDataModule) -> HeldOut:
    """The held-out samples by picture, by sound, by both, and by caption."""
    collector = Collector(task.model, [*((name,) for name in QUERY), QUERY, ("text",)])
    for batch in data.val_dataloader():
        collector.add(batch)
    return collector.finish()


def ranks(held_out: HeldOut, kept: Tensor | None) -> Tensor:
    """Rank of the caption of each query, which keeps some of its inputs; None keeps all."""
    query, target = held_out.embedded[QUERY], held_out.embedded["text",]
    here, there = asked(query, target, held_out.groups), target.present
    rows = query.rows
    if kept is not None:
        left = torch.ones(len(rows), len(QUERY), dtype=torch.bool)
        left[here] = kept
        rows = remaining_rows(held_out, QUERY, left)
    groups = held_out.groups[here], held_out.groups[there]
    return rank_queries(rows[here], target.rows[there], *groups)[0].rank


def compare(seed: int, given: Any) -> tuple[Outcome, Mapping[str, int]]:
    """Trains all models of a seed; recall of each with all inputs and with half of them."""
    data, found = None, {}
    for name, (directions, hidden) in TRAINED.items():
        start = time.perf_counter()
        task, data = train(directions, hidden, seed, data, given)
        found[name] = embed(task, data)
        print(f"seed {seed}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
    assert data is not None
    whole = {name: ranks(held_out, None) for name, held_out in found.items()}
    num = len(whole["all subsets"])
    kept = draw_kept(num, len(QUERY), 0.5, torch.Generator().manual_seed(seed))
    half = {n: ranks(h, kept) for n, h in found.items() if not n.endswith(" alone")}
    by_image, by_audio = (ranks(found[f"{name} alone"], kept) for name in QUERY)
    half[REFERENCE] = torch.where(kept[:, 0], by_image, by_audio)
    outcome: Outcome = {}
    for name, rank in half.items():
        outcome[name] = {}
        for k in CUTOFFS:
            cases = {"absent": rank, "image left": rank[kept[:, 0]], "audio left": rank[kept[:, 1]]}
            if name in whole:
                cases["complete"] = whole[name]
            for case, its in cases.items():
                outcome[name][f"{case} R@{k}"] = 100 * float((its <= k).double().mean())
    return outcome, {"train": len(data.train_samples), "queries": num}


def write(runs: Sequence[Outcome], about: dict[str, Any], folder: Path) -> Path:
    """Writes both files; returns the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "missing-cpu.md"
    table.with_suffix(".json").write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
    shown = ", ".join(f"{name} {value}" for name, value in about["hardware"].items())
    columns = [
        f"{case} R@{k}"
        for case in ("complete", "absent", "image left", "audio left")
        for k in CUTOFFS
    ]
    lines = [HEAD.format(**{**about, "hardware": shown})]
    lines += ["| trained on | " + " | ".join(columns) + " |\n", "|---" * (len(columns) + 1) + "|\n"]
    for name in runs[0]:
        cells = [_spread([run[name].get(column) for run in runs]) for column in columns]
        lines += [f"| {name} | " + " | ".join(cells) + " |\n"]
    lines += ["\nAgainst one model for each subset, in points (by seed):\n\n"]
    for name in (name for name in runs[0] if name != REFERENCE):
        for k in CUTOFFS:
            column = f"absent R@{k}"
            lost = [run[name][column] - run[REFERENCE][column] for run in runs]
            mean, each = statistics.mean(lost), ", ".join(f"{value:+.1f}" for value in lost)
            verdict = "within" if mean >= -BAR else "not within"
            lines += [f"* {name}, R@{k}: {mean:+.1f} ({each}): {verdict} {BAR:g} points\n"]
    table.write_text("".join(lines))
    return table


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    around = f" +- {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{around}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--cache", default=".cache/tokens", help="tokens of the frozen towers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--align-steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=250)
    given = parser.parse_args(arguments)
    if given.tiny:
        given.seeds, given.steps, given.align_steps = 1, 1, 1
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    for seed in range(given.seeds):
        outcome, sizes = compare(seed, given)
        outcomes.append(outcome)
        about = {
            "date": datetime.date.today().isoformat(),
            "minutes": (time.perf_counter() - start) / 60,
            "hardware": hardware("cpu"),
            "seeds": len(outcomes),
            "steps": given.steps,
            "batch": given.batch,
            **sizes,
        }
        print(write(outcomes, about, given.out), flush=True)  # what is done is kept


if __name__ == "__main__":
    main()
