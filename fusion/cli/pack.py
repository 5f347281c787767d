"""fusion pack: files or shards into verified shards."""

from pathlib import Path

from datamodules.manifest import check_pack
from datamodules.pack import (
    ByCount,
    BySize,
    FolderSource,
    ShardSource,
    Source,
    TableSource,
)
from datamodules.pack import pack as write
from datamodules.pack.named import is_named, named_source
from datamodules.pack.shards import SUFFIXES
from fusion.cli.display import printable


def pack(
    source: str,
    *,
    out: str | None = None,
    shard_size: int = 256,
    workers: int = 1,
    reshard: int | None = None,
    overwrite: bool = False,
    check: bool = False,
    root: str | None = None,
    split: str | None = None,
    download: bool = False,
) -> None:
    """Packs files, a dataset or shards into shards with a manifest, or checks such a pack.

    Every file is decoded once; what cannot be read, is there twice or has an unsafe name is listed
    in rejected.jsonl. A run that was killed goes on where it stopped when it is given again.

    Examples:
        fusion pack pictures --out shards
        fusion pack captions.csv --out shards --shard_size 512 --workers 4
        fusion pack torchvision:CIFAR10 --root data --split test --out shards
        fusion pack "old/*.tar" --out shards --reshard 16
        fusion pack --check shards

    Args:
        source: folder whose files of one name are a sample; .csv or .jsonl with columns image,
            audio, video, sensor (paths beside it) and text or caption, rows with the same files
            being one sample; torchvision:NAME or torchaudio:NAME; with --reshard shards; with
            --check a pack.
        out: folder for the shards, manifest.json and rejected.jsonl.
        shard_size: largest size of a shard in MB (2^20 bytes).
        workers: processes that decode; with more than one, a file that crashes its decoder is
            rejected, too.
        reshard: how many shards to make of the shards in source.
        overwrite: replace a pack that is there already.
        check: compare each shard with the manifest; the exit code is 1 if any is damaged.
        root: folder of the files of a torchvision or torchaudio dataset.
        split: part of such a dataset, such as test; without it, the library's default.
        download: let the library download such a dataset into --root.
    """
    if check:
        if out is not None or reshard is not None or overwrite or root is not None:
            raise ValueError("--check only reads; give it the folder of a pack and nothing else.")
        _check(Path(source))
        return
    if out is None:
        raise ValueError("There is no folder to write to; give --out FOLDER.")
    cut = BySize(shard_size * 2**20) if reshard is None else ByCount(reshard)
    named = is_named(source) and reshard is None
    if not named and (root is not None or split is not None or download):
        raise ValueError("--root, --split and --download are for torchvision:NAME; leave them out.")
    origin = (
        _dataset(source, root, split, download) if named else _source(source, Path(out), reshard)
    )
    packed = write(origin, Path(out), cut, workers, overwrite)
    again = f", {packed.num_resumed} of them from an earlier run" if packed.num_resumed else ""
    print(
        f"Read {packed.num_read} = packed {packed.num_samples} + rejected {packed.num_rejected}; "
        f"{len(packed.shards)} shards in {out}{again}."
    )
    if packed.num_rejected:
        print(f"{Path(out, 'rejected.jsonl')} says why for each.")


def _dataset(name: str, root: str | None, split: str | None, download: bool) -> Source:
    if root is None:
        raise ValueError(f"There is no folder for the files of {name}; give --root FOLDER.")
    return named_source(name, Path(root), split, download)


def _source(name: str, out: Path, reshard: int | None) -> Source:
    path = Path(name)
    if reshard is not None:
        return ShardSource(name, target=out)
    if name.endswith(SUFFIXES):
        raise ValueError(f"{name} is a shard; give --reshard N to make N shards of it.")
    if path.is_dir():
        return FolderSource(path, without=out)
    if not path.exists():
        raise ValueError(f"There is no {name}; give a folder, a .csv, a .jsonl, or shards.")
    if path.suffix.lower() in (".csv", ".jsonl"):
        return TableSource(path)
    raise ValueError(f"{name} is neither a folder nor a .csv nor a .jsonl; give one of these.")


def _check(folder: Path) -> None:
    shards, damaged = check_pack(folder)
    for name, reason in damaged:
        print(printable(f"{name}: {reason}"))
    if damaged:
        print(f"{len(damaged)} damaged; {len(shards)} shards are listed in {folder}.")
        raise SystemExit(1)
    samples = sum(shard.samples for shard in shards)
    print(f"All {len(shards)} shards of {folder} are whole: {samples} samples.")
