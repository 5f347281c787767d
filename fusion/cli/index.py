"""fusion index: embeddings of a folder or of shards into an index."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datamodules.reasons import Reason
from datamodules.samples import MEMBERS, Members, Rejected, Sample
from datamodules.shards import read_folder, read_shards
from datamodules.urls import local_shards
from fusion.checkpoint import find_checkpoint
from fusion.cli.display import origin_of, printable
from fusion.inference import Pipeline
from fusion.retrieval import Entry, LanceIndex, add_entries

_SHOWN = 10  # refused samples that are listed
_SHARDS = (".tar", ".tar.gz", ".tgz")


def index(run: str, *sources: str, modalities: str | None = None, out: str | None = None) -> None:
    """Embeds folders of files, or shards, into an index for `fusion search`.

    Files of a folder that share a name, such as cat.jpg, cat.txt and cat.wav, are one entry.
    Indexing a source again updates its entries and removes those that are gone.

    Examples:
        fusion index runs/quickstart ~/Pictures
        fusion index runs/quickstart shards/*.tar --modalities image+audio

    Args:
        run: run folder or checkpoint.
        sources: folders of files, or shards (.tar, .tar.gz).
        modalities: what an entry is embedded by, such as image or image+audio; it may lack some
            of them. Without this option image, if the model has it.
        out: folder of the index; without this option the folder "index" beside the checkpoint.
    """
    if not sources:
        raise ValueError("There is no source; give folders of files, or .tar shards.")
    pipeline = Pipeline.from_run(run)
    names = _chosen(modalities, pipeline.model.modalities)
    folder = Path(out) if out else index_folder(run)
    table = LanceIndex(folder, pipeline.model.dim, pipeline.fingerprint)
    origins = [origin for source in sources for origin in _origins(Path(source))]
    refused: list[Rejected] = []
    with _progress() as advance:
        keys = add_entries(
            pipeline,
            table,
            _entries(origins, names, refused),
            lambda entry, reason: refused.append(
                Rejected(origin_of(entry.metadata), "", "", Reason.UNFIT, reason)
            ),
            advance,
        )
    _list_refused(refused)
    if not keys:
        raise ValueError(f"Nothing in {', '.join(sources)} could be indexed by {'+'.join(names)}.")
    gone = _gone(table.keys(), keys, origins)
    table.delete(gone)
    print(
        f"Indexed {len(keys)} entries by {'+'.join(names)} into {folder} "
        f"({len(refused)} refused, {len(gone)} removed, {len(table)} in all)."
    )


def index_folder(run: str) -> Path:
    """Where the index of a run is unless told otherwise: beside the checkpoint."""
    return find_checkpoint(run).parent / "index"


def entry_of(sample: Sample, names: Sequence[str]) -> Entry:
    """A sample as an entry that is embedded by those of the modalities that it has.

    Its metadata is what `fusion search` shows: caption, modalities, and where it is: `source`, a
    folder or shard, with `key` and, for a folder, `files` {modality: path in the folder}.
    """
    item = {name: sample.inputs[name] for name in names if name in sample.inputs}
    in_folder = Path(sample.shard).is_dir()  # a shard's own metadata may say anything
    metadata = {
        "caption": sample.caption,
        "modalities": "+".join(item),
        "source": sample.shard,
        "key": sample.key,
        "files": sample.meta.get("files", {}) if in_folder else {},
    }
    return Entry(f"{sample.shard}/{sample.key}", item, metadata)


def _chosen(modalities: str | None, known: Sequence[str]) -> tuple[str, ...]:
    default = "image" if "image" in known else known[0]
    names = tuple((modalities or default).split("+"))
    readable = [name for name in known if name in MEMBERS]
    if not set(names) <= set(readable):
        raise ValueError(
            f"Got the modalities {'+'.join(names)}; choose from {', '.join(readable)}, joined by +."
        )
    return names


def _origins(source: Path) -> list[Path]:
    """The folder, or the shards, that a source names, as absolute paths."""
    if source.is_dir():
        return [source.resolve()]
    if not source.name.endswith(_SHARDS):
        problem = "is neither a folder nor a shard" if source.exists() else "is missing"
        raise ValueError(f"The source {source} {problem}; give a folder of files, or .tar shards.")
    return [path.resolve() for path in local_shards([source])]


def _entries(
    origins: Sequence[Path], names: Sequence[str], refused: list[Rejected]
) -> Iterator[Entry]:
    """Entries of all samples that have one of the modalities; the others are refused."""
    members: Members = {name: MEMBERS[name] for name in dict.fromkeys([*names, "text"])}
    for origin in origins:
        read = read_folder if origin.is_dir() else _read_shard
        for sample in read(origin, members, refused):
            entry = entry_of(sample, names)
            if entry.item:
                yield entry
            else:
                reason = f"it has no {' or '.join(names)}"
                origin = origin_of(entry.metadata)
                refused.append(Rejected(origin, "", "", Reason.MISSING_MODALITY, reason))


def _read_shard(path: Path, members: Members, refused: list[Rejected]) -> Iterator[Sample]:
    return read_shards([path], members, refused)


def _gone(stored: Sequence[str], kept: Sequence[str], origins: Sequence[Path]) -> list[str]:
    """Keys of the same sources that were stored earlier and are not there any more."""
    prefixes = tuple(f"{origin}/" for origin in origins)
    return sorted({key for key in stored if key.startswith(prefixes)} - set(kept))


@contextmanager
def _progress() -> Iterator[Callable[[], object]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    count = TextColumn("Embedding: {task.completed} entries")
    columns = SpinnerColumn(), count, TimeElapsedColumn()
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)
        yield lambda: progress.advance(task)


def _list_refused(refused: Sequence[Rejected]) -> None:
    for item in refused[:_SHOWN]:
        print(f"refused: {printable(str(item))}", file=sys.stderr)
    if len(refused) > _SHOWN:
        print(f"refused: {len(refused) - _SHOWN} more", file=sys.stderr)
