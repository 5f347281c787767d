"""What `fusion bench-data` found, and what to do about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps

from datamodules.ledger import Ledger
from datamodules.timing import Timing

_ENOUGH = 0.1  # share of training that waits for data; below it a loader is fast enough
_CURES = {
    "read": "keep the shards on a disk that is nearer or faster",
    "decode": "pack smaller or shorter files",
    "transform": "have the tower take smaller inputs",
    "collate": "use smaller batches",
}


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        stages: each by itself, on one core.
        rate: samples that one core takes through all of them in a second.
        loader: the whole loader.
        workers: of the loader.
        cores: that this process may use.
        ledger: of the loader.
        data_wait: share of training spent waiting for data; None if nothing was trained.
    """

    stages: Sequence[Timing]
    rate: float
    loader: Timing
    workers: int
    cores: int
    ledger: Ledger
    data_wait: float | None

    @property
    def advice(self) -> str:
        """What bounds, and what would help, in one line."""
        slowest = max(self.stages, key=lambda stage: stage.seconds)
        bound = f"{slowest.name} bounds: {slowest.rate:,.0f} samples/s a core"
        if self.data_wait is not None and self.data_wait < _ENOUGH:
            return f"{bound}; training hardly waits for data, so more workers would not help"
        if self.workers < self.cores:
            workers = "1 worker" if self.cores == 1 else f"{self.cores} workers"
            return f"{bound}; {workers} would feed {self.cores * self.rate:,.0f} samples/s"
        cure = _CURES[slowest.name.partition(" ")[0]]
        if slowest.name == "read":
            return f"{bound}; workers beyond the {self.cores} cores may help, or {cure}"
        return f"{bound}; {self.workers} workers keep all {self.cores} cores busy, so {cure}"


def print_json(report: Report) -> None:
    """Everything, as JSON."""
    ledger = report.ledger
    found = {
        "stages": [{**asdict(stage), "rate": stage.rate} for stage in report.stages],
        "loader": {**asdict(report.loader), "rate": report.loader.rate},
        "workers": report.workers,
        "cores": report.cores,
        "read": ledger.num_read,
        "delivered": ledger.num_delivered,
        "rejected": ledger.num_rejected,
        "data_wait": report.data_wait,
        "advice": report.advice,
    }
    print(dumps(found, indent=2))


def print_table(report: Report) -> None:
    """A table for people, with the advice below it."""
    from rich.console import Console
    from rich.table import Table

    total = sum(stage.seconds for stage in report.stages)
    table = Table("stage, on one core", "samples", "samples/s", "share of time")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in report.stages:
        share = f"{stage.seconds / max(total, 1e-9):.0%}"
        table.add_row(stage.name, f"{stage.num_samples:,}", f"{stage.rate:,.0f}", share)
    table.add_row("all of them", "", f"{report.rate:,.0f}", "100%")
    Console().print(table)
    print(
        f"Loader with num_workers={report.workers} on {report.cores} cores: "
        f"{report.loader.rate:,.0f} samples/s."
    )
    print(f"Ledger: {report.ledger}.")
    if report.data_wait is not None:
        print(f"Training waits for data {report.data_wait:.0%} of the time.")
    print(f"Advice: {report.advice}.")
