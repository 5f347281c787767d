"""Read samples from WebDataset shards, or from a folder of plain files.

WebDataset's own stages expand and group the archives; what they would trust is checked first:
local files only (no `pipe:` or other scheme is ever opened), headers walked by
`datamodules.archive`, and never WebDataset's `.decode()`, which runs pickles.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datamodules.archive import MAX_MEMBER_BYTES, inspect_shard, split_member
from datamodules.decode import DECODERS
from datamodules.samples import MEMBERS, METADATA, Members, Rejected, Sample, build_sample, reject

MAX_SHARDS = 100_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def expand_shards(urls: Sequence[str | Path]) -> list[Path]:
    """Expand brace lists (`{000..012}`) and globs to the shards they name, each once.

    Raises:
        ValueError: no shard, a pattern without a match, a scheme, or a folder.
    """
    shards: dict[Path, None] = {}
    for url in urls:
        pattern = str(url)
        if _SCHEME.match(pattern):
            raise ValueError(f"got {pattern!r}; only local shards are read: give a path")
        for name in _braces(pattern):
            paths = [Path(p) for p in sorted(glob.glob(name))] if glob.has_magic(name) else []
            paths = paths or [Path(name)]
            for path in paths:
                if path.is_dir():
                    raise ValueError(f"{path} is a folder; name its shards: {path}/*.tar")
                if not path.is_file():
                    raise ValueError(f"no shard matches {name!r}; check the path")
                shards[path] = None
    if not shards:
        raise ValueError("no shard was named; give at least one .tar or .tar.gz")
    return list(shards)


def _braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    spans = [abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)]
    if max(spans, default=0) < MAX_SHARDS:  # a range is expanded at once, products are lazy
        try:
            names = list(itertools.islice(braceexpand(pattern), MAX_SHARDS + 1))
        except ValueError as error:
            raise ValueError(f"the braces of {pattern!r} do not match; wanted {{0..9}}") from error
        if len(names) <= MAX_SHARDS:
            return names
    raise ValueError(f"{pattern!r} names more than {MAX_SHARDS} shards; give fewer")


def read_shards(
    urls: Sequence[str | Path],
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
        ValueError: see `expand_shards`; or something is refused and `rejected` is None.
    """
    wanted = _extensions(members)
    for path in expand_shards(urls):
        names, refused = inspect_shard(path, wanted)
        for item in refused:
            reject(item, rejected)
        for sample in _read_members(path, names, members):
            if isinstance(sample, Rejected):
                reject(sample, rejected)
            else:
                yield sample


def _read_members(path: Path, names: set[str], members: Members) -> Iterator[Sample | Rejected]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    if not names:
        return
    with path.open("rb") as stream:  # opened here: webdataset's opener also runs commands
        source = [{"url": str(path), "stream": stream}]
        files = tar_file_expander(source, select_files=names.__contains__)
        for fields in group_by_keys(files, keys=split_member):
            key = fields.pop("__key__")
            yield build_sample(key, str(path), fields, members)


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
    extensions = _extensions(members)
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
            return Rejected(str(root), key, extension, reason)
    fields = {extension: path.read_bytes() for extension, path in files.items()}
    sample = build_sample(key, str(root), fields, members)
    if isinstance(sample, Rejected):
        return sample
    used = {m: next(e for e in members[m] if e in files) for m in sample.inputs}
    names = {m: files[e].relative_to(root).as_posix() for m, e in used.items()}
    return replace(sample, meta={**sample.meta, "files": names})


def _extensions(members: Members) -> set[str]:
    """The extensions that are read; raise for a modality that nothing can decode."""
    if unknown := sorted(set(members) - set(DECODERS)):
        raise ValueError(f"no decoder for {', '.join(unknown)}; known: {', '.join(DECODERS)}")
    return {ext for extensions in members.values() for ext in extensions} | {METADATA}
