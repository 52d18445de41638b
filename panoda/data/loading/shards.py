"""Arrow IPC shards of uint8 arrays: written row by row, read back through a memory map.

One record batch holds one row, so writing needs the memory of one row, and a row is found without an
offset table. A column holds bytes of fixed size (codec raw) or compressed images (``panoda.data.loading.codec``).
Each row has a CRC-32 of its stored bytes in the index that refers to it; it is checked on the first read.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from panoda.data.loading.codec import Codec, decode
from panoda.system.errors import DataError
from panoda.system.files import sha256_file

Columns = dict[str, tuple[int, ...]]
"""Column name -> shape of one row."""


class ShardInfo(TypedDict):
    """What an index remembers of one shard."""

    file: str
    rows: int
    bytes: int
    sha256: str


class ShardWriter:
    """Append rows to ``shard-00000.arrow``, ``shard-00001.arrow``, ... of a folder.

    Args:
        columns: Shapes of the uint8 arrays of one row.
    """

    def __init__(
        self, folder: Path, *, columns: Columns, rows_per_shard: int, codec: Codec = "raw", first: int = 0
    ) -> None:
        self.folder = folder
        self.columns = dict(columns)
        self.rows_per_shard = rows_per_shard
        self.codec: Codec = codec
        self.first = first
        self.shards: list[ShardInfo] = []
        self._rows = 0
        self._open: tuple[Path, pa.OSFile, pa.RecordBatchFileWriter] | None = None
        size = {n: int(np.prod(s)) if codec == "raw" else -1 for n, s in columns.items()}
        fields = [pa.field(n, pa.binary(size[n]), nullable=False) for n in columns]
        self._schema = pa.schema(fields)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, row: Mapping[str, np.ndarray | bytes]) -> tuple[int, int, int]:
        """Write one row.

        Args:
            row: What ``encode`` made of each column's uint8 array.

        Returns:
            Shard number, row within the shard, CRC-32 of the row.

        Raises:
            ValueError: an array has another dtype or shape than its column.
        """
        cells = (row[name] for name in self.columns)
        stored = [cell if isinstance(cell, bytes) else np.ascontiguousarray(cell) for cell in cells]
        for value, (name, shape) in zip(stored, self.columns.items(), strict=True):
            if isinstance(value, np.ndarray) and (value.dtype != np.uint8 or value.shape != shape):
                raise ValueError(
                    f"column {name!r}: expected uint8 {shape}, found {value.dtype} {value.shape}"
                )
        number = self.first + len(self.shards)
        if self._open is None:
            path = self.folder / shard_name(number)
            sink = pa.OSFile(str(path), "wb")
            self._open = path, sink, pa.ipc.new_file(sink, self._schema)
        arrays = [_cell(field.type, value) for field, value in zip(self._schema, stored, strict=True)]
        self._open[2].write_batch(pa.record_batch(arrays, schema=self._schema))
        place = (number, self._rows, _crc(stored))
        self._rows += 1
        if self._rows == self.rows_per_shard:
            self.close()
        return place

    def close(self) -> None:
        """Finish the open shard, if any."""
        if self._open is None:
            return
        path, sink, writer = self._open
        self._open = None
        try:
            writer.close()
        finally:
            sink.close()
        info = ShardInfo(file=path.name, rows=self._rows, bytes=path.stat().st_size, sha256=sha256_file(path))
        self.shards.append(info)
        self._rows = 0


class ShardReader:
    """Random access to the rows of the shards of a folder.

    Opens lazily and once per process, so it can be pickled to loader workers.

    Args:
        columns: Shapes of the uint8 arrays of one row.

    Raises:
        DataError: a shard is missing or has another size than the index says.
    """

    def __init__(
        self, folder: Path, *, columns: Columns, shards: list[ShardInfo], codec: Codec = "raw"
    ) -> None:
        self.folder = folder
        self.columns = dict(columns)
        self.codec: Codec = codec
        self.shards = shards
        self._open: dict[int, pa.RecordBatchFileReader] = {}
        self._seen: set[tuple[int, int]] = set()
        for shard in shards:
            path = folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "it is missing" if size is None else f"it has {size} bytes"
                raise DataError(f"{path}: {found}, expected {shard['bytes']} bytes; {_REDO}")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "_seen": set()}

    def read(self, shard: int, row: int, crc: int) -> dict[str, np.ndarray]:
        """One row as writable copies.

        Raises:
            DataError: the shard cannot be read or the bytes are not those the index was written for.
        """
        path = self.folder / self.shards[shard]["file"]
        try:
            batch = self._reader(shard).get_batch(row)
            stored = {name: self._stored(batch, name) for name in self.columns}
        except (pa.ArrowException, OSError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path}: row {row} cannot be read ({error}); {_REDO}") from error
        if (shard, row) not in self._seen:
            if _crc(list(stored.values())) != crc:
                raise DataError(f"{path}: row {row} is corrupt (its checksum does not match); {_REDO}")
            self._seen.add((shard, row))
        try:
            arrays = {n: decode(stored[n], shape, self.codec) for n, shape in self.columns.items()}
        except ValueError as error:
            raise DataError(f"{path}: row {row} cannot be decoded ({error}); {_REDO}") from error
        return {n: a.copy() for n, a in arrays.items()} if self.codec == "raw" else arrays

    def _stored(self, batch: pa.RecordBatch, name: str) -> memoryview:
        """The stored bytes of a column's only cell."""
        column = batch.column(batch.schema.names.index(name))
        if self.codec != "raw":
            return memoryview(column[0].as_buffer())
        return memoryview(column.buffers()[1])[: int(np.prod(self.columns[name]))]

    def _reader(self, shard: int) -> pa.RecordBatchFileReader:
        if shard not in self._open:
            path = self.folder / self.shards[shard]["file"]
            self._open[shard] = pa.ipc.open_file(pa.memory_map(str(path)))
        return self._open[shard]


_REDO = "run the stage that writes it again (dvc repro) or fetch it again (dvc checkout)"


def shard_name(number: int) -> str:
    """File name of shard ``number``."""
    return f"shard-{number:05d}.arrow"


def _cell(kind: pa.DataType, value: np.ndarray | bytes) -> pa.Array:
    if isinstance(value, bytes):
        return pa.array([value], kind)
    return pa.FixedSizeBinaryArray.from_buffers(kind, 1, [None, pa.py_buffer(value)])


def _crc(parts: Sequence[Any]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value
