"""index.parquet: a row for every image of a folder of shards; metadata on the folder as a whole.

Written group of rows by group of rows, so that whoever writes it needs the memory of a few rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from panoda.data.loading.codec import Codec
from panoda.system.errors import DataError

INDEX = "index.parquet"
FORMAT = 1
"""Version of the layout of index.parquet and its raw shards."""
CODEC_FORMAT = 2
"""The same with shards in the codec that the index names."""
METADATA_KEY = b"panoda"
"""Key of the JSON in the parquet file's metadata."""
_GROUP_ROWS = 1024


class IndexWriter:
    """Writes an index; a context manager. Without ``finish`` there is no readable index.

    Args:
        path: index.parquet in an existing folder; the caller stages it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[pa.RecordBatch] = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows."""
        self._rows.append(pa.RecordBatch.from_pylist(list(rows), schema=self._schema))
        if sum(batch.num_rows for batch in self._rows) >= _GROUP_ROWS:
            self._flush()

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write what is left and the metadata, which has to have a ``format``."""
        self._flush()
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._rows).combine_chunks()
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._rows = []


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a folder's index.

    Raises:
        DataError: missing or unreadable index, one of another format version, or an empty one.
    """
    path = folder / INDEX
    found = _open(folder).metadata
    raw = (found.metadata or {}).get(METADATA_KEY)
    metadata: dict[str, Any] = json.loads(raw) if raw else {}
    known = (FORMAT, CODEC_FORMAT)
    if metadata.get("format") not in known or metadata.get("codec", "raw") not in get_args(Codec):
        what = f"format {metadata.get('format')}, codec {metadata.get('codec', 'raw')}"
        raise DataError(
            f"{path}: {what}; expected format {' or '.join(map(str, known))}, codec "
            f"{' or '.join(get_args(Codec))}; write {folder} again"
        )
    if found.num_rows == 0:
        raise DataError(f"{path}: the split is empty")
    return metadata


def read_index(folder: Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """All rows of a folder's index, or some columns of them, and its metadata.

    Raises:
        DataError: missing or unreadable index, one of another format version, or an empty one.
    """
    metadata = read_metadata(folder)
    try:
        return _open(folder).read(None if columns is None else list(columns)), metadata
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder / INDEX}: not a readable index ({error}); write {folder} again") from error


def _open(folder: Path) -> pq.ParquetFile:
    path = folder / INDEX
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the stage that writes {folder} first") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable index ({error}); write {folder} again") from error
