"""One file over http(s): resumed where it stopped, tried again when the server or the line fails.

What has arrived lies in ``NAME.part`` (with the server's mark of the version in ``NAME.part.mark``) until it
is complete; pooch's HTTPDownloader moves the bytes.
"""

from __future__ import annotations

import email.utils
import errno
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panoda.system.errors import DataError

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a moment later."""
LONGEST_WAIT_S = 300.0
"""A server that asks for a longer pause is given up for now."""
PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much starts the count of failures anew."""
CHUNK = 1 << 16
"""Bytes written at once; at most so many are lost when a connection is cut."""


class FetchError(DataError):
    """A file could not be fetched; the message says why and what to do."""


class _TryAgain(Exception):
    """This attempt failed, the next one may not; ``wait_s`` is what the server asked for."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How long a server is given.

    Attributes:
        retries: Failures in a row before giving up (an attempt that brought some data starts anew).
        backoff_s: First pause in seconds; doubles with every failure.
        timeout_s: Silence after which a connection counts as cut, in seconds.
    """

    retries: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Watch:
    """Who follows a transfer.

    Attributes:
        advance: Called with the bytes that are here and the size in bytes (None = unknown).
        need: Called with the bytes still to come before they are read; raises when the disk is too full.
        stop: Set from another thread to end the transfer; what has arrived is kept.
    """

    advance: Callable[[int, int | None], None] = lambda done, total: None
    need: Callable[[int], None] = lambda count: None
    stop: threading.Event = field(default_factory=threading.Event)


def download_http(url: str, part: Path, *, expected: int | None, patience: Patience, watch: Watch) -> None:
    """Bring ``url`` into ``part``, going on where an earlier attempt stopped.

    Args:
        url: http(s) address.
        part: File that holds what has arrived; complete on return.
        expected: Size in bytes, when known.
        patience: Retries and pauses.
        watch: Who follows the transfer.

    Raises:
        FetchError: refused by the server, another size than expected, disk full, or no success after all
            retries.
    """
    failures = 0
    while True:
        before = _size(part)
        try:
            _Transfer(url, part, expected=expected, patience=patience, watch=watch).run()
            return
        except _TryAgain as error:
            failures = 0 if _size(part) - before >= PROGRESS_BYTES else failures + 1
            if failures > patience.retries:
                raise FetchError(_given_up(url, part, str(error))) from None
            pause = patience.backoff_s * 2 ** max(failures - 1, 0)
            if error.wait_s is not None:
                if error.wait_s > LONGEST_WAIT_S:
                    raise FetchError(
                        f"{url}: the server asks to wait {error.wait_s:.0f} s; run the command again "
                        "after that"
                    ) from None
                pause = error.wait_s
            if watch.stop.wait(min(pause, LONGEST_WAIT_S)):
                raise FetchError(f"{url}: stopped") from None


class _Transfer:
    """One attempt: a request from where ``part`` ends, and the file that takes what comes."""

    def __init__(
        self, url: str, part: Path, *, expected: int | None, patience: Patience, watch: Watch
    ) -> None:
        self.url, self.part, self.expected = url, part, expected
        self.patience, self.watch = patience, watch
        self.mark = part.with_name(f"{part.name}.mark")
        self.total = expected
        self.complete = False

    def run(self) -> None:
        import requests
        from pooch import HTTPDownloader

        have = self._usable()
        if self.expected is not None and have == self.expected:
            return
        # identity: a compressed answer would have another length than the file and could not be resumed.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.mark.is_file():
                headers["If-Range"] = self.mark.read_text(encoding="utf-8")
        downloader = HTTPDownloader(
            chunk_size=CHUNK,
            headers=headers,
            timeout=self.patience.timeout_s,
            hooks={"response": self._answered},
        )
        try:
            with self.part.open("ab") as self.handle:
                downloader(self.url, self, None)
        except requests.exceptions.HTTPError:
            # Only 416 gets here: the hook has judged every other answer.
            if self.complete:
                return
            raise
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
            requests.exceptions.TooManyRedirects,
        ) as error:
            raise FetchError(f"{self.url}: not an address that can be fetched ({error})") from error
        except requests.exceptions.SSLError as error:
            raise FetchError(
                f"{self.url}: no trusted connection ({error}); check the clock and the certificates of this "
                "machine"
            ) from error
        except requests.exceptions.RequestException as error:
            raise _TryAgain(_plain(error)) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise FetchError(
                f"{self.part}: disk full; make room and run the command again, it goes on from there"
            ) from error
        finally:
            if not _size(self.part):
                self._forget()
        if self.total is not None and _size(self.part) < self.total:
            raise _TryAgain(f"cut off after {_size(self.part)} of {self.total} bytes")

    def _usable(self) -> int:
        """Bytes of an earlier attempt that can be kept; a part longer than the file cannot."""
        have = _size(self.part)
        if self.expected is not None and have > self.expected:
            self._forget()
            return 0
        return have

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)

    # --- what pooch calls ----------------------------------------------------------------------------

    def write(self, data: bytes) -> int:
        """Take bytes as they come."""
        if self.watch.stop.is_set():
            raise FetchError(f"{self.url}: stopped")
        count = self.handle.write(data)
        have = self.handle.tell()
        if self.total is not None and have > self.total:
            self._forget()
            raise FetchError(
                f"{self.url}: more than the {self.total} bytes there should be; nothing was kept"
            )
        self.watch.advance(have, self.total)
        return count

    def flush(self) -> None:
        """The file is flushed when it is closed."""

    def _answered(self, response: Any, *_: Any, **__: Any) -> None:
        """Judge the head of an answer before its body is read."""
        if response.is_redirect:
            return
        status, have = response.status_code, self.handle.tell()
        if status in RETRIED:
            raise _TryAgain(f"HTTP {status}", _retry_after(response.headers.get("Retry-After")))
        if status == 416 and have:
            self._past_the_end(response, have)
            return
        if status not in (200, 206):
            raise FetchError(_refused(self.url, status))
        if status == 206 and _range_start(response.headers.get("Content-Range")) != have:
            self._forget()
            raise _TryAgain("the server answered with another part of the file")
        if status == 200 and have:
            # Ranges are not supported, or the file changed: from the start.
            self.handle.truncate(0)
            self.handle.seek(0)
            have = 0
        # Asked for the bytes as they are: a .gz that the server calls an encoding is not to be decoded.
        response.raw.headers.pop("Content-Encoding", None)
        self._announced(response, have)

    def _past_the_end(self, response: Any, have: int) -> None:
        """416: nothing comes after what is here. Right when that is the whole file."""
        whole = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        self.complete = whole is not None and int(whole[1]) == have and self.expected in (None, have)
        if not self.complete:
            self._forget()
            raise _TryAgain(f"the server has no bytes after the first {have}")

    def _announced(self, response: Any, have: int) -> None:
        """Compare the announced size, keep the version's mark, look at the disk."""
        kind = response.headers.get("Content-Type", "")
        if kind.startswith("text/html") and not self.part.name.endswith((".html.part", ".htm.part")):
            raise FetchError(
                f"{self.url}: the server sent a web page in place of the file (a login or licence page?); "
                f"open the address in a browser and save the file as {_whole(self.part)}"
            )
        length = response.headers.get("Content-Length", "")
        if length.isdigit():
            announced = have + int(length)
            if self.expected is not None and announced != self.expected:
                raise FetchError(
                    f"{self.url}: wrong size: the server has {announced} bytes, the declaration says "
                    f"{self.expected}; the published file changed or the declaration is wrong"
                )
            self.total = announced
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A weak ETag may stand for different bytes: it must not be used with ranges.
        if mark and not mark.startswith("W/"):
            self.mark.write_text(mark, encoding="utf-8")
        else:
            self.mark.unlink(missing_ok=True)
        if self.total is not None:
            self.watch.need(self.total - have)
        self.watch.advance(have, self.total)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _whole(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(".part"))


def _range_start(text: str | None) -> int | None:
    match = re.match(r"bytes (\d+)-", text or "")
    return int(match[1]) if match else None


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _plain(error: Exception) -> str:
    """The innermost reason of a chain of network errors, on one line."""
    while error.__context__ is not None and isinstance(error.__context__, Exception):
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _refused(url: str, status: int) -> str:
    meaning = {
        401: "it wants a login",
        403: "access is not allowed (a licence to accept? a limit reached?)",
        404: "there is no such file; it may have moved",
        410: "the file was removed",
    }.get(status, "the server refused")
    return f"{url}: HTTP {status}: {meaning}; look at the home page of the data set for the present address"


def _given_up(url: str, part: Path, why: str) -> str:
    kept = (
        f"{_size(part)} bytes are kept in {part} and the next run goes on from there" if _size(part) else ""
    )
    offline = f"or fetch it on another machine and put it at {_whole(part)}"
    return (
        f"{url}: given up after several attempts ({why}); check the network (a proxy is taken from "
        f"HTTPS_PROXY) and run the command again, {offline}{'; ' + kept if kept else ''}"
    )
