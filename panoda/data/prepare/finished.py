"""Shards that a killed run had finished: kept in a state folder and taken over by the next run.

Each finished shard lies there beside a note: its recipe, its index rows, its counts. The note is written
after the shard, so a shard without one is not finished. The recipe covers the items, the size and time of
their files and every setting that decides the bytes; the code is the caller's to watch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from panoda.data.formats.dataset import RawItem
from panoda.data.loading.shards import ShardInfo, shard_name
from panoda.system.files import sha256_file, write_json


class Finished(TypedDict):
    """A finished shard: what the index remembers of it, its rows in order, ``Counts`` of its images as JSON."""

    info: ShardInfo
    rows: list[dict[str, Any]]
    counts: dict[str, Any]


def recipe(items: Iterable[RawItem], **settings: Any) -> str:
    """SHA-256 over all that decides the bytes of a shard: items, state of their files, settings."""
    listed, files = [], []
    for item in items:
        listed.append(asdict(item))
        for path in (item.image, item.label):
            files.append(None if path is None else [path.stat().st_size, path.stat().st_mtime_ns])
    value = {"items": listed, "files": files, **settings}
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def size(folder: Path, number: int, made_from: str) -> int | None:
    """Bytes of the finished shard ``number``; None without one that is whole and of this recipe."""
    try:
        value, path = _note(folder, number), folder / shard_name(number)
        if value["recipe"] != made_from or value["info"]["sha256"] != sha256_file(path):
            return None
        return int(value["info"]["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(folder: Path, number: int) -> Finished:
    """A shard whose ``size`` was found."""
    value = _note(folder, number)
    return Finished(info=value["info"], rows=value["rows"], counts=value["counts"])


def save(folder: Path, number: int, made_from: str, shard: Finished) -> None:
    """Note that shard ``number`` of a folder is finished."""
    write_json(folder / f"{shard_name(number)}.json", {"recipe": made_from, **shard})


def _note(folder: Path, number: int) -> dict[str, Any]:
    note: dict[str, Any] = json.loads((folder / f"{shard_name(number)}.json").read_text(encoding="utf-8"))
    return note


def _plain(value: Any) -> Any:
    """Paths and arrays as JSON values."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
