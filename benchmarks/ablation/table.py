"""Results of the ablation as tables: `python -m benchmarks.ablation.table FILE [--out FILE.md]`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ablation import film, stamps, travel
from benchmarks.ablation.fusions import FUSIONS

Run = dict[str, Any]
ORDER = [*FUSIONS, *travel.VARIANTS]


class Column(NamedTuple):
    """One figure of a run.

    Attributes:
        title: of the column.
        keys: where the figure is in a run, level by level.
        is_cost: a cost, given without spread, not a share.
    """

    title: str
    keys: tuple[str, ...]
    is_cost: bool = False

    def cell(self, runs: Sequence[Run]) -> str:
        """Mean over the runs and half their range; a dash where none has the figure."""
        values = [value for run in runs if (value := self._value(run)) is not None]
        if not values:
            return "–"
        mean = sum(values) / len(values)
        if self.is_cost:
            return f"{mean:.1f}"
        return f"{100 * mean:.1f} ± {50 * (max(values) - min(values)):.1f}"

    def _value(self, run: Run) -> float | None:
        value: Any = run
        for key in self.keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


class Section(NamedTuple):
    """The table of a task.

    Attributes:
        title: what is measured.
        columns: of the table.
    """

    title: str
    columns: list[Column]


COSTS = [
    Column("MFLOP a query", ("mflop",), True),
    Column("rounds searched", ("num_iters",), True),
    Column("ms a step", ("ms_per_step",), True),
]
HELD = ("held vendor", "held concepts", "both")


def _retrieval(title: str, tests: Sequence[str], kinds: Sequence[str]) -> Section:
    shares = [Column(f"{test}: {kind}", (test, kind)) for test in tests for kind in kinds]
    return Section(f"{title}, R@1 in %", [*shares, *COSTS])


def _carried(title: str, tested: Sequence[tuple[int, float]], unit: str) -> Section:
    names = [f"{length} {unit}, {rate:g}" for length, rate in tested]
    rounds = Column(f"rounds searched at {tested[-1][0]}", (f"{names[-1]}, rounds",), True)
    return Section(title, [*(Column(name, (name,)) for name in names), rounds])


FUSED = ("fused", "mean of units")
SECTIONS: dict[str, Section] = {
    "travel": _carried(
        "Travel: share of tokens that name the nearest label to their left, %",
        travel.TESTED_ON,
        "tokens",
    ),
    "film": _carried(
        "Film: share of blank frames that find the name of the last picture among 64, %",
        film.TESTED_ON,
        "frames",
    ),
    "pointing": _retrieval("Pointing: the drawing at a place of a scene", HELD, FUSED),
    "changed": _retrieval("Changed: a drawing and the word of a change", HELD, FUSED),
    "occluded": _retrieval(
        "Occluded: 15 % of a drawing and half the words, frozen towers", HELD, FUSED
    ),
    "composed": _retrieval(
        "Composed: 15 % of a drawing and half the words, towers from scratch",
        ("held vendor", "held concepts", "held drawings"),
        FUSED,
    ),
    "stamps": _retrieval(
        "Stamps: picture and French speech to captions never trained on, either noisy",
        stamps.TESTS,
        ("image alone", "speech alone", "fused", "mean of units"),
    ),
}


def table(runs: list[Run], task: str) -> str:
    """Markdown: the mean over seeds of each variant, and half the range."""
    section, mine = SECTIONS[task], [run for run in runs if run["task"] == task]
    columns = [c for c in section.columns if c.cell(mine) != "–"]
    machines = sorted({run["hardware"] for run in mine})
    notes = sorted({run["note"] for run in mine if "note" in run})  # how old runs differ from new
    titles = ["variant", *(column.title for column in columns), "seeds"]
    lines = [
        f"## {section.title}",
        "",
        " ".join([f"Ran on {', '.join(machines)}.", *notes]),
        "",
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
    ]
    for variant in sorted({run["variant"] for run in mine}, key=_place):
        some = [run for run in mine if run["variant"] == variant]
        cells = [variant, *(column.cell(some) for column in columns), str(len(some))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(variant: str) -> tuple[int, str]:
    """Order of the rows: that of the ways of fusing, then by name."""
    return (ORDER.index(variant) if variant in ORDER else len(ORDER), variant)


def main() -> None:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.file.read_text().splitlines()]
    tasks = [task for task in SECTIONS if any(run["task"] == task for run in runs)]
    text = "\n\n".join(table(runs, task) for task in tasks) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
