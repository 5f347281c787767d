"""Measures every efficiency technique beside the plain form: `python -m benchmarks.efficiency`.

Writes `efficiency-cpu` or `efficiency-gpu`, as .json and as .md, into `benchmarks/results`.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measure import CPU, GPU, TINY, Row, Size, hardware
from benchmarks.searches import anderson, early_exit, low_precision, warm_start
from benchmarks.sparse import sparse_updates
from benchmarks.training import gradients, scaling

RESULTS = Path(__file__).parent / "results"
TECHNIQUES: tuple[Callable[[Size, str], Iterator[Row]], ...] = (
    early_exit,
    sparse_updates,
    low_precision,
    warm_start,
    anderson,
    gradients,
    scaling,
)
HEAD = """# Efficiency of the techniques

Measured {date} in one run, on {hardware}. Times are medians of {repeats} timings of the forms in \
turn. Ratio: plain / with it; `yes` above 1.1, `costs` below 1/1.1.

| technique | case | unit | plain | with it | ratio | pays | note |
|---|---|---|---|---|---|---|---|
"""


def measure(size: Size, device: str) -> list[Row]:
    """All rows; says to stderr how far it is."""
    rows = []
    for technique in TECHNIQUES:
        print(f"{technique.__name__} ...", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        rows.extend(technique(size, device))
    return rows


def write(rows: Sequence[Row], size: Size, device: str, folder: Path) -> Path:
    """Writes both files; returns the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    date, machine = datetime.date.today().isoformat(), hardware(device)
    table = folder / f"efficiency-{'gpu' if device == 'cuda' else 'cpu'}.md"
    record = {
        "date": date,
        "hardware": machine,
        "size": asdict(size),
        "rows": [asdict(row) | {"ratio": row.ratio, "pays": row.pays} for row in rows],
    }
    table.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    names = ", ".join(f"{name} {value}" for name, value in machine.items())
    head = HEAD.format(date=date, hardware=names, repeats=size.repeats)
    table.write_text(head + "".join(_line(row) for row in rows))
    return table


def _line(row: Row) -> str:
    cells = (
        *(row.technique, row.case, row.unit, f"{row.plain:.4g}", f"{row.with_it:.4g}"),
        *(f"{row.ratio:.2f}", row.pays, row.note),
    )
    return f"| {' | '.join(cells)} |\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(arguments)
    size = TINY if given.tiny else GPU if given.device == "cuda" else CPU
    print(write(measure(size, given.device), size, given.device, given.out))


if __name__ == "__main__":
    main()
