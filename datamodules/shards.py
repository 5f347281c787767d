"""Read samples from WebDataset shards, or from a folder of plain files.

Nothing of WebDataset's own is used to read: it runs commands in names (`pipe:`) and pickles in
members, and ends a damaged shard silently. Local files only; headers are walked by
`datamodules.headers` and judged by `datamodules.archive` before a byte of content is read.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from datamodules.archive import MAX_MEMBER_BYTES, find_samples, read_members
from datamodules.decode import DECODERS
from datamodules.headers import DamagedShard, open_archive
from datamodules.reasons import Reason
from datamodules.samples import MEMBERS, METADATA, Members, Rejected, Sample, build_sample, reject
from datamodules.urls import Names, local_shards


def read_shards(
    urls: Names,
    members: Members = MEMBERS,
    rejected: list[Rejected] | None = None,
) -> Iterator[Sample]:
    """Read the samples of tar shards in order, with bytes as inputs (see `decode_samples`).

    Every key of every shard is either yielded once or rejected once; a damaged shard is rejected
    whole, before any of its samples is yielded. Members with other extensions are ignored.

    Args:
        urls: local paths, globs or brace lists of `.tar` or `.tar.gz` files.
        members: modality -> extensions in order of preference.
        rejected: receives what is refused; None raises at the first.

    Raises:
        ValueError: see `local_shards`; or something is refused and `rejected` is None.
    """
    wanted = known_extensions(members)
    for path in local_shards(urls):
        try:
            for sample in _read_shard(path, wanted, members):
                if isinstance(sample, Rejected):
                    reject(sample, rejected)
                else:
                    yield sample
        except DamagedShard as error:
            reject(Rejected(str(path), "", "", error.reason, str(error)), rejected)


def _read_shard(
    path: Path, wanted: Container[str], members: Members
) -> Iterator[Sample | Rejected]:
    with open_archive(path) as stream:
        for found in find_samples(stream, wanted, str(path)):
            if found.refused is not None:
                yield found.refused
            else:
                yield build_sample(found.key, str(path), read_members(stream, found), members)


def read_folder(
    folder: str | Path, members: Members = MEMBERS, rejected: list[Rejected] | None = None
) -> Iterator[Sample]:
    """Read a folder (and those below) of plain files; files that share a stem are one sample.

    The sample's key is its path in the folder without the extension, `meta["files"]` maps each
    modality to its file's path in the folder. Hidden files and other extensions are ignored.

    Args:
        folder: the folder.
        members: modality -> extensions in order of preference; the longest that fits counts.
        rejected: receives what is refused; None raises at the first.

    Raises:
        ValueError: not a folder, no file in it fits, or a file is refused and `rejected` is None.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give one with pictures, recordings or texts")
    extensions = known_extensions(members)
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        fits = [ext for ext in extensions if name.lower().endswith(f".{ext}")]
        hidden = any(part.startswith(".") for part in name.split("/"))
        if fits and not hidden and path.is_file():
            extension = max(fits, key=len)
            groups.setdefault(name[: -len(extension) - 1], {})[extension] = path
    groups = {key: files for key, files in groups.items() if set(files) - {METADATA}}
    if not groups:
        raise ValueError(f"{root} holds no file that fits; wanted {', '.join(sorted(extensions))}")
    for key, files in groups.items():
        sample = _read_files(key, root, files, members)
        if isinstance(sample, Rejected):
            reject(sample, rejected)
        else:
            yield sample


def _read_files(
    key: str, root: Path, files: dict[str, Path], members: Members
) -> Sample | Rejected:
    for extension, path in files.items():
        if (size := path.stat().st_size) > MAX_MEMBER_BYTES:
            reason = f"the file has {size} bytes, more than the limit of {MAX_MEMBER_BYTES}"
            return Rejected(str(root), key, extension, Reason.TOO_LARGE, reason)
    fields = {extension: path.read_bytes() for extension, path in files.items()}
    sample = build_sample(key, str(root), fields, members)
    if isinstance(sample, Rejected):
        return sample
    chosen = {m: [files[e] for e in members[m] if e in files] for m in sample.inputs}
    names = {m: found[0].relative_to(root).as_posix() for m, found in chosen.items() if found}
    return replace(sample, meta={**sample.meta, "files": names})


def known_extensions(members: Members) -> set[str]:
    """The extensions that are read for these modalities, that of metadata included.

    Raises:
        ValueError: nothing can decode one of the modalities.
    """
    if unknown := sorted(set(members) - set(DECODERS)):
        raise ValueError(f"no decoder for {', '.join(unknown)}; known: {', '.join(DECODERS)}")
    return {ext for extensions in members.values() for ext in extensions} | {METADATA}
