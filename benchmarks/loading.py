"""Measures the loader of shards beside open_clip's own: `python -m benchmarks.loading`.

Writes `loading-cpu`, as .json and as .md, into `benchmarks/results`. Needs some 150 MB of disk.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.loaders import Pass, bare, cost, guarded, open_clip_loader, our_loader
from benchmarks.measure import hardware
from benchmarks.media import flac, opus, photo, small_picture, video, write_shards
from datamodules.module import ShardDataModule
from datamodules.timing import StageTimer
from fusion.cli.bench_data import common_transform

RESULTS = Path(__file__).parent / "results"
PHOTO, SMALL = "640 x 480 JPEG", "128 x 128 WebP"
MEDIA = {
    photo: PHOTO,
    small_picture: SMALL,
    opus: "10 s of Opus, mono",
    flac: "10 s of FLAC, stereo, 48 kHz",
    video: "10 s of H.264, 640 x 360, 30 frames/s; 16 frames are taken",
}
VERSIONS = ("open_clip_torch", "webdataset", "torch", "torchvision", "pillow", "soundfile", "av")
BAR, GUARDS_BAR = 1.0, 0.95
HEAD = """# Speed of the loader

Measured {date} in one run of {minutes:.1f} minutes, on {hardware}, load before and after {load}; \
{versions}. Training transforms: a random crop of 90 to 100 % of the picture, bicubic to 224 \
pixels; open_clip's tokenizer. Batches of {batch}. The forms take turns, pass after pass; ratios \
are medians of the ratios of {repeats} neighbouring passes, by the clock and by the processor \
time of all processes; above 1 ours is faster.

* **open_clip**: `open_clip_train.data.get_wds_dataset` with its own transform. It was written for \
webdataset up to 0.2.86; of later ones the marks at the end of shards are turned off, which it \
stumbles over.
* **ours, same output**: normalised float32 pictures and 77 ids, as open_clip's are.
* **ours**: bytes as our towers take them (they normalise on the device), texts cut at their end.
* **bare**: ours with the same output, without manifest, checks of names, headers and sizes, caps, \
and ledger; each pass opens the shards anew.

"""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        repeats: timed passes of each form.
        batch: samples of a batch.
        workers: numbers of them.
        shards: number of shards, of samples in each, and of different pictures.
        media: the same for sound and video.
    """

    repeats: int
    batch: int
    workers: tuple[int, ...]
    shards: tuple[int, int, int]
    media: tuple[int, int, int]


TINY = Size(1, 4, (0, 1), (4, 4, 3), (1, 3, 1))
FULL = Size(5, 64, (0, 1, 2), (8, 48, 96), (1, 24, 4))


@dataclass(frozen=True)
class Row:
    """One comparison of two forms.

    Attributes:
        case: of what.
        num_workers: of both.
        plain: samples a second of the form compared with.
        ours: samples a second of our loader.
        ratio: ours / plain by the clock; above 1 ours is faster.
        cpu_ratio: processor time of plain / ours; other programs change it less.
        bar: what the ratio should reach; None for none.
    """

    case: str
    num_workers: int
    plain: float
    ours: float
    ratio: float
    cpu_ratio: float
    bar: float | None


def compare(
    cases: Sequence[str],
    forms: Sequence[Callable[[], int]],
    num_workers: int,
    repeats: int,
    bar: float,
) -> Iterator[Row]:
    """Runs passes of all forms in turn, each of which returns how many samples it gave.

    Yields a row for each case: how the second and further forms compare with the first. The bar
    is that of the second.
    """
    print(f"{cases[0]}, {num_workers} workers ...", file=sys.stderr, flush=True)
    costs: list[list[Pass]] = [[] for _ in forms]
    for repeat in range(repeats + 1):
        for form, passes in zip(forms, costs, strict=True):
            taken = cost(form)
            if repeat:  # the first starts workers and opens files
                passes.append(taken)
    plain, *others = costs
    for case, ours in zip(cases, others, strict=True):
        pairs = list(zip(plain, ours, strict=True))
        yield Row(
            case,
            num_workers,
            1 / statistics.median(passed.seconds for passed in plain),
            1 / statistics.median(passed.seconds for passed in ours),
            statistics.median(a.seconds / b.seconds for a, b in pairs),
            statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs),
            bar if case == cases[0] else None,
        )


def against_open_clip(name: str, shards: Sequence[str], size: Size) -> Iterator[Row]:
    """With the same output, and with ours as it is."""
    cases = [f"{name}: {case}, against open_clip" for case in ("ours, same output", "ours")]
    for num_workers in size.workers:
        forms = [open_clip_loader(shards, size.batch, num_workers)]
        forms += [our_loader(shards, size.batch, num_workers, same) for same in (True, False)]
        yield from compare(cases, forms, num_workers, size.repeats, BAR)


def guards(name: str, shards: Sequence[str], size: Size) -> Iterator[Row]:
    """What manifest, caps and ledger cost: opening the shards included, in one process."""
    forms = bare(shards, size.batch), guarded(shards, size.batch)
    yield from compare([f"{name}: ours, against bare"], forms, 0, 2 * size.repeats, GUARDS_BAR)


def per_core(folder: Path, size: Size) -> Iterator[dict[str, float | str]]:
    """Samples that one core reads, decodes, transforms and collates in a second, by stage."""
    for make in MEDIA:
        place = folder / f"core-{make.__name__}"
        data = ShardDataModule(write_shards(place, make, size.media), batch_size=8, num_workers=0)
        data.augment = common_transform
        data.setup()
        timer = StageTimer(data.train_dataloader())
        for _ in timer.run(100):
            pass
        rates = {name: stage.rate for name, stage in timer.stages.items() if "text" not in name}
        yield {"of": MEDIA[make], "all": timer.rate, **rates}


def write(rows: Sequence[Row], cores: Sequence[dict], about: dict, folder: Path) -> Path:
    """Writes both files; returns the path of the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "loading-cpu.md"
    record = {**about, "rows": [asdict(row) for row in rows], "per_core": cores}
    table.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    shown = {
        name: ", ".join(f"{key} {value}" for key, value in about[name].items())
        for name in ("hardware", "versions")
    }
    lines = [HEAD.format(**{**about, **shown})]
    lines += ["| case | workers | other, samples/s | ours, samples/s | ratio | CPU ratio | bar |\n"]
    lines += ["|---|---|---|---|---|---|---|\n"]
    for row in rows:
        bar = "" if row.bar is None else f">= {row.bar:g}"
        figures = f"{row.plain:,.0f} | {row.ours:,.0f} | {row.ratio:.2f} | {row.cpu_ratio:.2f}"
        lines += [f"| {row.case} | {row.num_workers} | {figures} | {bar} |\n"]
    lines += ["\nPer core, samples/s, transforms as `fusion bench-data` has them:\n\n"]
    lines += ["| of | all stages | by stage |\n|---|---|---|\n"]
    for core in cores:
        stages = (f"{n} {v:,.0f}" for n, v in core.items() if n not in ("of", "all"))
        lines += [f"| {core['of']} | {core['all']:,.0f} | {', '.join(stages)} |\n"]
    table.write_text("".join(lines))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(arguments)
    size = TINY if given.tiny else FULL
    torch.set_num_threads(1)
    began, load = datetime.datetime.now(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_shards(Path(scratch, "photos"), photo, size.shards)
        small = write_shards(Path(scratch, "small"), small_picture, size.shards)
        rows = [*against_open_clip(PHOTO, photos, size)]
        rows += [*against_open_clip(SMALL, small, size)]
        rows += [*guards(PHOTO, photos, size), *guards(SMALL, small, size)]
        cores = list(per_core(Path(scratch), size))
    about = {
        "date": datetime.date.today().isoformat(),
        "minutes": (datetime.datetime.now() - began).total_seconds() / 60,
        "hardware": hardware("cpu"),
        "versions": {name: version(name) for name in VERSIONS},
        "load": f"{load:.1f} and {os.getloadavg()[0]:.1f}",
        "batch": size.batch,
        "repeats": size.repeats,
    }
    print(write(rows, cores, about, given.out))


if __name__ == "__main__":
    main()
