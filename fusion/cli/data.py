"""fusion data: the sample shards, rebuilt from public packages."""

from pathlib import Path
from typing import Literal

Name = Literal["stamps", "clipart", "emoji"]


def data(recipe: Name, *, out: str, source: str | None = None, overwrite: bool = False) -> None:
    """Rebuilds a shard of the sample data from public packages.

    Examples:
        fusion data stamps --out shards
        fusion data emoji --out shards --source extracted-packages

    Args:
        recipe: stamps, clipart or emoji.
        out: folder for the shard.
        source: folder of the extracted packages; without this option they are fetched.
        overwrite: replace a shard that is there already.
    """
    from datamodules.recipes import build

    shard = Path(out) / f"{recipe}-000000.tar.gz"
    if shard.exists() and not overwrite:
        raise ValueError(f"{shard} is there already; give --overwrite to replace it.")
    written = build(recipe, Path(out), Path(source) if source else None)
    print(f"Wrote {written}.")
