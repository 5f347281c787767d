"""Results of the ablation as tables: `python -m benchmarks.ablation.table FILE [--out FILE.md]`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ablation import travel

Run = dict[str, Any]
COLUMNS: dict[str, dict[str, Callable[[Run], float]]] = {
    "travel": {
        f"{length} tokens, {rate:g}": lambda run, key=f"{length} tokens, {rate:g}": 100 * run[key]
        for length, rate in travel.TESTED_ON
    },
    "composed": {
        f"{held}: {kind}": lambda run, held=held, kind=kind: 100 * run[held][kind]
        for held in ("held vendor", "held concepts", "held drawings")
        for kind in ("fused", "mean of units")
    },
}
TITLES = {
    "travel": "Travel: share of tokens that name the nearest label to their left, %",
    "composed": "Composed retrieval of emoji: R@1 of 15 % of a drawing and half the words, %",
}


def table(runs: list[Run], task: str) -> str:
    """Markdown: the mean over seeds of each variant, and half the range."""
    columns = COLUMNS[task]
    variants = list(dict.fromkeys(run["variant"] for run in runs if run["task"] == task))
    lines = [f"## {TITLES[task]}", "", "| variant | " + " | ".join(columns) + " | seeds |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for variant in sorted(variants):
        mine = [run for run in runs if run["task"] == task and run["variant"] == variant]
        cells = []
        for value in columns.values():
            values = [value(run) for run in mine]
            spread = (max(values) - min(values)) / 2
            cells.append(f"{sum(values) / len(values):.1f} ± {spread:.1f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.file.read_text().splitlines()]
    tasks = [task for task in COLUMNS if any(run["task"] == task for run in runs)]
    hardware = ", ".join(sorted({run["hardware"] for run in runs}))
    text = "\n\n".join([f"Ran on {hardware}.", *(table(runs, task) for task in tasks)]) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
