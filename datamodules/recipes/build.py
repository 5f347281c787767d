"""Runs a recipe: fetch, draw in several processes, drop duplicates, write the shard."""

import importlib.util
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from datamodules import manifest
from datamodules.recipes.asterisk import Asterisk
from datamodules.recipes.base import Drawn, Recipe, Rejection, Task
from datamodules.recipes.clipart import Clipart
from datamodules.recipes.emoji import Emoji
from datamodules.recipes.emoji_all import EmojiAll
from datamodules.recipes.packages import RecipeError
from datamodules.recipes.stamps import Stamps
from datamodules.writer import sync, write_shard

T = TypeVar("T")

RECIPES: Mapping[str, type[Recipe]] = {
    recipe.name: recipe for recipe in (Stamps, Clipart, Emoji, EmojiAll, Asterisk)
}
"""Name -> recipe: a fixed table."""
_REFUSALS = (ValueError, OSError, RuntimeError, SyntaxError)  # resvg, files, libsndfile, Pillow


def build(name: str, out: Path, source: Path | None = None, num_workers: int = 2) -> Path:
    """Builds the shard of a recipe from public packages, showing progress.

    Args:
        name: A name in `RECIPES`.
        out: Folder for `NAME-000000.tar.gz`, `NAME.rejected.jsonl` (source and reason of each
            item left out) and `manifest.json`, which recipes that share a folder share.
        source: Folder that holds the already extracted packages; None fetches them into a
            temporary folder.
        num_workers: Processes that draw; 0 draws in this one.

    Returns:
        The shard written.

    Raises:
        RecipeError: When there is no such recipe, a library that it uses is not installed, or
            the source cannot be had or is not right.
        ManifestError: When the folder holds a manifest that is damaged.
    """
    if name not in RECIPES:
        raise RecipeError(f"Got the recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    recipe = RECIPES[name]()
    for library in recipe.libraries:
        if importlib.util.find_spec(library) is None:
            raise RecipeError(
                f"The library {library!r} is not installed; run `pip install 'assim[recipes]'`."
            )
    _listed(out)  # a damaged manifest is told before the work
    out.mkdir(parents=True, exist_ok=True)
    if source is not None:
        return run(recipe, source, out, num_workers)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=out) as folder:
        for package in _track(recipe.packages, f"Fetching {name}", len(recipe.packages)):
            package.fetch(Path(folder))
        return run(recipe, Path(folder), out, num_workers)


def run(recipe: Recipe, source: Path, out: Path, num_workers: int) -> Path:
    """Draws what a recipe plans and writes its shard; see `build` for the arguments."""
    planned = list(recipe.plan(source))
    rejected = [item for item in planned if isinstance(item, Rejection)]
    tasks = [item for item in planned if isinstance(item, Task)]
    shard = out / f"{recipe.name}-000000.tar.gz"
    results = _track(_draw_all(tasks, num_workers), f"Drawing {recipe.name}", len(tasks))
    drawn = _distinct(zip(tasks, results, strict=True), rejected.append)
    write_shard(((sample.key, sample.members) for sample in drawn), shard)
    lines = (json.dumps(item._asdict(), ensure_ascii=False) + "\n" for item in sorted(rejected))
    (out / f"{recipe.name}.rejected.jsonl").write_text("".join(lines), "utf-8")
    _add_to_manifest(shard)
    return shard


def _listed(folder: Path) -> list[manifest.ShardEntry]:
    return manifest.read_manifest(folder) if (folder / manifest.NAME).exists() else []


def _add_to_manifest(shard: Path) -> None:
    """Lists a shard in the manifest beside it, in place of an older one of its name."""
    entry, _ = manifest.describe_shard(shard)
    others = [other for other in _listed(shard.parent) if other.name != shard.name]
    partial = shard.with_name(f".{manifest.NAME}.partial")
    manifest.write_manifest(sorted([*others, entry], key=lambda entry: entry.name), partial)
    sync(partial)
    partial.replace(shard.with_name(manifest.NAME))


def _track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total, console=Console(stderr=True))


def _draw_all(tasks: list[Task], num_workers: int) -> Iterator[Drawn | Rejection]:
    if num_workers == 0:
        yield from map(_attempt, tasks)
        return
    # Spawned, not forked: the progress bar runs a thread, and libraries hold locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_attempt, tasks, chunksize=16)


def _one_thread() -> None:
    for library in ("OMP", "OPENBLAS"):  # read when scipy is first imported, in the task
        os.environ[f"{library}_NUM_THREADS"] = "1"


def _attempt(task: Task) -> Drawn | Rejection:
    try:
        return task.draw()
    except _REFUSALS as error:
        return Rejection(task.source, str(error))


def _distinct(
    results: Iterable[tuple[Task, Drawn | Rejection]], reject: Callable[[Rejection], None]
) -> Iterator[Drawn]:
    """Passes on samples that look new, with keys of their own; the rest goes to `reject`."""
    first: dict[bytes, str] = {}
    uses = Counter[str]()
    for task, result in results:
        if isinstance(result, Rejection):
            reject(result)
        elif result.look and result.look in first:
            reject(Rejection(task.source, f"same picture as {first[result.look]}"))
        else:
            first[result.look] = task.source
            uses[result.key] += 1
            for omitted in result.omitted:
                reject(omitted)
            # Paths such as "zoom+" and "zoom-" give one key.
            key = result.key if uses[result.key] == 1 else f"{result.key}_{uses[result.key]}"
            yield result._replace(key=key)
