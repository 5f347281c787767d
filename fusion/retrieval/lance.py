"""An index in a LanceDB table: a folder of files, no server.

Shapes: n entries, Q queries, D width of the embeddings.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from fusion.retrieval.base import Hit

_WIDTH, _MODEL = b"fusion.dim", b"fusion.model"


@final
class LanceIndex:
    """Exact cosine search in a LanceDB table, which is bound to the model that embeds its rows.

    Below 100,000 entries exact search takes a fraction of a second. Readers see the last complete
    state while another process writes. Nothing is written before the first `add`.

    Args:
        folder: folder of the database.
        dim: D.
        fingerprint: of the model, see `fusion.Pipeline.fingerprint`.
        table: name of the table.

    Raises:
        ValueError: if the table is damaged, or holds rows of another model or width.
    """

    def __init__(
        self, folder: str | Path, dim: int, fingerprint: str, table: str = "samples"
    ) -> None:
        self.folder, self.dim = Path(folder), dim
        self._name, self._bound_to = table, {_WIDTH: str(dim), _MODEL: fingerprint}
        self._table = self._open() if exists(folder, table) else None

    def add(self, keys: Sequence[str], rows: Tensor, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Stores entries, all or none; an entry whose key is there already is replaced.

        Args:
            keys: n distinct names.
            rows: (n, D) unit rows.
            metadata: n mappings that JSON can hold.

        Raises:
            ValueError: if counts differ, keys repeat, or the rows are not unit rows of width D.
            OSError: if the table cannot be written.
        """
        import pyarrow

        if not len(keys) == len(set(keys)) == len(rows) == len(metadata):
            raise ValueError(
                f"Got {len(keys)} keys ({len(set(keys))} distinct), {len(rows)} rows and "
                f"{len(metadata)} metadata; give as many of each and no key twice."
            )
        self._check(rows)
        if not keys:
            return
        values = pyarrow.array(rows.detach().cpu().float().reshape(-1).numpy())
        columns = [
            pyarrow.array(list(keys)),
            pyarrow.FixedSizeListArray.from_arrays(values, self.dim),
            pyarrow.array([json.dumps(dict(m), ensure_ascii=False) for m in metadata]),
        ]
        with self._translated("written"):
            table = self._table = self._table or self._create()
            merge = table.merge_insert("key").when_matched_update_all()
            merge = merge.when_not_matched_insert_all()
            merge.execute(pyarrow.Table.from_arrays(columns, schema=self._schema()))
            table.optimize()

    def search(self, rows: Tensor, k: int) -> list[list[Hit]]:
        """The k entries nearest to each query (Q, D), best first; fewer if the index has fewer.

        Raises:
            ValueError: if k < 1, or the rows are not unit rows of width D.
        """
        if k < 1:
            raise ValueError(f"Got k={k}; ask for at least 1 result.")
        self._check(rows)
        return [self._nearest(row, k) for row in rows.detach().cpu().float()]

    def _nearest(self, row: Tensor, k: int) -> list[Hit]:
        if self._table is None:
            return []
        with self._translated("read"):
            query = self._table.search(row.numpy(), vector_column_name="row")
            query = query.distance_type("cosine").select(["key", "metadata", "_distance"])
            found = query.limit(k).to_list()
        hits = [Hit(f["key"], 1 - f["_distance"], json.loads(f["metadata"])) for f in found]
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.key))

    def keys(self) -> list[str]:
        """Keys of all entries."""
        if self._table is None:
            return []
        with self._translated("read"):
            found = self._table.search().select(["key"]).limit(len(self)).to_arrow()
        return found.column("key").to_pylist()

    def delete(self, keys: Sequence[str]) -> None:
        """Removes entries; keys that are not there are ignored."""
        if self._table is not None and keys:
            literals = ", ".join("'" + key.replace("'", "''") + "'" for key in keys)
            with self._translated("written"):
                self._table.delete(f"key IN ({literals})")

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.count_rows()

    def _check(self, rows: Tensor) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"Got rows of shape {tuple(rows.shape)}; this index holds rows of width {self.dim}."
            )
        if not ((rows.norm(dim=1) - 1).abs() < 1e-3).all():  # also catches NaN
            raise ValueError("Got rows that are not of unit length; give normalised embeddings.")

    def _schema(self) -> Any:
        import pyarrow

        return pyarrow.schema(
            {
                "key": pyarrow.string(),
                "row": pyarrow.list_(pyarrow.float32(), self.dim),
                "metadata": pyarrow.string(),
            },
            metadata=self._bound_to,
        )

    def _create(self) -> Any:
        import lancedb

        database = lancedb.connect(str(self.folder))
        return database.create_table(self._name, schema=self._schema(), exist_ok=True)

    def _open(self) -> Any:
        import lancedb

        with self._translated("read"):
            table = lancedb.connect(str(self.folder)).open_table(self._name)
            bound_to = table.schema.metadata or {}
        for name, value in self._bound_to.items():
            if bound_to.get(name) != value.encode():
                raise ValueError(
                    f"The index {self.folder} was made by another model than this one; index the "
                    "source again into another folder, or delete this one first."
                )
        return table

    @contextlib.contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        """LanceDB raises RuntimeError and ValueError with pages of text for files it cannot use."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise OSError(
                f"The index {self.folder} cannot be {done} ({reason}); free the disk if it is "
                "full, else delete this folder and index again."
            ) from error


def exists(folder: str | Path, table: str = "samples") -> bool:
    """Whether there is a table of that name; looks only, and needs no LanceDB."""
    return (Path(folder) / f"{table}.lance").is_dir()
