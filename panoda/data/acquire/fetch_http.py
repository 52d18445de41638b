"""One file over http(s): resumed where it stopped, tried again when the server or the line fails.

What has arrived lies in ``NAME.part`` (with the server's mark of the version in ``NAME.part.mark``) until it
is complete. pooch would start over after every cut, so this asks for the rest itself.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from panoda.system.errors import DataError

RETRIES = 5
"""Failures in a row before giving up (an attempt that brought some data starts anew)."""
BACKOFF_S = 1.0
"""First pause; doubles with every failure."""
TIMEOUT_S = 60.0
"""Silence after which a connection counts as cut."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a moment later."""
LONGEST_WAIT_S = 300.0
"""A server that asks for a longer pause is given up for now."""
PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much starts the count of failures anew."""
CHUNK = 1 << 16
"""Bytes written at once."""
SPARE_BYTES = 64 << 20
"""Left free on the disk, for everything else."""
Advance = Callable[[int, int | None], None]
_REFUSED = {
    401: "it wants a login",
    403: "access is not allowed (a licence to accept? a limit reached?)",
    404: "there is no such file; it may have moved",
    410: "the file was removed",
}


class FetchError(DataError):
    """A file could not be fetched; the message says why and what to do."""


class _TryAgain(Exception):
    """This attempt failed, the next one may not; ``wait_s`` is what the server asked for."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def require_space(folder: Path, needed: int, *, what: str) -> None:
    """Raise FetchError when the disk of ``folder`` has fewer than ``needed`` bytes free for ``what``."""
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise FetchError(
            f"{folder}: {what} need {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there; "
            "make room, or choose a folder on another disk (--path, or dataset.path in params.yaml)"
        )


def part_of(target: Path) -> Path:
    """File that holds what has arrived of ``target``."""
    return target.with_name(f"{target.name}.part")


def download_http(url: str, target: Path, *, expected: int | None, progress: bool) -> Path:
    """Bring ``url`` into the part of ``target``, going on where an earlier attempt stopped.

    Args:
        expected: Size in bytes, when known.

    Returns:
        The part, complete.

    Raises:
        FetchError: refused by the server, another size than expected, disk full, or no success after all
            retries.
    """
    part, failures = part_of(target), 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not progress) as bar:
        task = bar.add_task(target.name, total=expected)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        while True:
            before = _size(part)
            try:
                _attempt(url, part, expected=expected, advance=advance)
                _mark(part).unlink(missing_ok=True)
                return part
            except _TryAgain as error:
                failures = 0 if _size(part) - before >= PROGRESS_BYTES else failures + 1
                if failures > RETRIES:
                    raise FetchError(_given_up(url, part, str(error))) from None
                pause = BACKOFF_S * 2 ** max(failures - 1, 0) if error.wait_s is None else error.wait_s
                if pause > LONGEST_WAIT_S:
                    raise FetchError(
                        f"{url}: the server asks to wait {pause:.0f} s; run the command again after that"
                    ) from None
                time.sleep(pause)


def _attempt(url: str, part: Path, *, expected: int | None, advance: Advance) -> None:
    """One request from where ``part`` ends; what comes is appended."""
    import requests
    from urllib3.exceptions import HTTPError

    have = _size(part)
    if expected is not None and have == expected:
        return
    try:
        with requests.get(url, headers=_headers(part, have), stream=True, timeout=TIMEOUT_S) as response:
            _require_file(response, url, part, have)
            kept = have if response.status_code == 206 else 0
            total = _total(response, url, kept, expected)
            _note_version(response, part)
            if total is not None:
                require_space(part.parent, total - kept, what=_whole(part).name)
            with part.open("ab" if kept else "wb") as target:
                # Not decoded: a .gz that the server calls an encoding is to stay one.
                for data in response.raw.stream(CHUNK, decode_content=False):
                    target.write(data)
                    advance(target.tell(), total)
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, HTTPError) as error:
        raise _TryAgain(_innermost(error)) from error
    except requests.exceptions.RequestException as error:
        raise FetchError(f"{url}: not an address that can be fetched ({error})") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FetchError(
            f"{part}: disk full; make room and run the command again, it goes on from there"
        ) from error
    if total is not None and _size(part) < total:
        raise _TryAgain(f"cut off after {_size(part)} of {total} bytes")


def _headers(part: Path, have: int) -> dict[str, str]:
    # identity: a compressed answer would have another length than the file and could not be resumed.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _mark(part).is_file():
            headers["If-Range"] = _mark(part).read_text(encoding="utf-8")
    return headers


def _require_file(response: Any, url: str, part: Path, have: int) -> None:
    """Judge the head of an answer before its body is read."""
    from urllib3.util import Retry

    status, headers = response.status_code, response.headers
    if status in RETRIED:
        raise _TryAgain(f"HTTP {status}", Retry(retry_after_max=10**9).get_retry_after(response.raw))
    if status == 416 or (status == 206 and not headers.get("Content-Range", "").startswith(f"bytes {have}-")):
        part.unlink(missing_ok=True)
        raise _TryAgain(f"the server has no bytes after the first {have}")
    if status not in (200, 206):
        meaning = _REFUSED.get(status, "the server refused")
        raise FetchError(
            f"{url}: HTTP {status}: {meaning}; look at the home page of the data set for the present address"
        )
    if headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(
            f"{url}: the server sent a web page in place of the file (a login or licence page?); open the "
            f"address in a browser and save the file as {_whole(part)}"
        )


def _total(response: Any, url: str, kept: int, expected: int | None) -> int | None:
    """Size of the whole file, as announced."""
    length = response.headers.get("Content-Length", "")
    total = kept + int(length) if length.isdigit() else expected
    if expected is not None and total != expected:
        raise FetchError(
            f"{url}: wrong size: the server has {total} bytes, the declaration says {expected}; the "
            "published file changed or the declaration is wrong"
        )
    return total


def _note_version(response: Any, part: Path) -> None:
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak ETag may stand for different bytes: it must not be used with ranges.
    if mark and not mark.startswith("W/"):
        _mark(part).write_text(mark, encoding="utf-8")
    else:
        _mark(part).unlink(missing_ok=True)


def _mark(part: Path) -> Path:
    return part.with_name(f"{part.name}.mark")


def _whole(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(".part"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _innermost(error: BaseException) -> str:
    """The innermost reason of a chain of network errors, on one line."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _given_up(url: str, part: Path, why: str) -> str:
    kept = (
        f"; {_size(part)} bytes are kept in {part} and the next run goes on from there" if _size(part) else ""
    )
    return (
        f"{url}: given up after several attempts ({why}); check the network (a proxy is taken from "
        f"HTTPS_PROXY) and run the command again, or fetch it on another machine and put it at {_whole(part)}"
        f"{kept}"
    )
