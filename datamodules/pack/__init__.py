"""Packing files, datasets and shards into verified shards; see `datamodules.pack.run.pack`."""

from datamodules.pack.cut import ByCount, BySize
from datamodules.pack.dataset import DatasetSource, members_of_picture, members_of_recording
from datamodules.pack.folder import FolderSource
from datamodules.pack.run import Packed, pack
from datamodules.pack.shards import ShardSource
from datamodules.pack.source import PackError, Source
from datamodules.pack.table import TableSource

__all__ = [
    "ByCount",
    "BySize",
    "DatasetSource",
    "FolderSource",
    "PackError",
    "Packed",
    "ShardSource",
    "Source",
    "TableSource",
    "members_of_picture",
    "members_of_recording",
    "pack",
]
