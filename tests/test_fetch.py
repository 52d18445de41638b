"""Fetching from a local server that cuts connections, ignores ranges, refuses and lies."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import socket
import sys
import time
from collections import namedtuple
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import gdown
import numpy as np
import pytest
import requests
from http_server import Served, Server, serve

from panoda.data.acquire import fetch_hosts, fetch_http
from panoda.data.acquire.fetch import FetchError, fetch_files, verify
from panoda.data.acquire.fetch_http import CHUNK
from panoda.data.formats.declaration import RemoteFile

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
RETRIES = 3


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetch_http, "RETRIES", RETRIES)
    monkeypatch.setattr(fetch_http, "BACKOFF_S", 0.01)
    monkeypatch.setattr(fetch_http, "TIMEOUT_S", 5)


@pytest.fixture
def server():
    with serve() as running:
        yield running


def remote(server: Server, name: str = "a.zip", **fields: object) -> RemoteFile:
    return RemoteFile(name=name, url=f"{server.url}/{name}", **fields)


def get(folder: Path, *files: RemoteFile, **options: object) -> list[Path]:
    return fetch_files(files, folder, progress=True, **options)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


# --- what goes well -----------------------------------------------------------------------------------


def test_fetched_verified_and_not_fetched_again(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    file = remote(server, bytes=len(BODY), sha256=SHA256.upper(), md5=MD5)
    assert get(tmp_path / "down", file) == [tmp_path / "down" / "a.zip"]
    assert (tmp_path / "down" / "a.zip").read_bytes() == BODY
    assert left(tmp_path / "down") == {"a.zip"}
    get(tmp_path / "down", file)
    assert len(server.requests) == 1


def test_nothing_is_printed_without_a_terminal(server, tmp_path, capfd):
    server.files["a.zip"] = Served(BODY)
    get(tmp_path, remote(server))
    assert capfd.readouterr() == ("", "")


def test_cut_connections_are_resumed(server, tmp_path):
    server.files["a.zip"] = Served(BODY, cuts=[CHUNK + 900, CHUNK, 0])
    get(tmp_path, remote(server, sha256=SHA256))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [
        None,
        f"bytes={CHUNK + 900}-",
        f"bytes={2 * CHUNK + 900}-",
        f"bytes={2 * CHUNK + 900}-",
    ]


def test_ignored_ranges_start_over(server, tmp_path):
    server.files["a.zip"] = Served(BODY, ranges=False, cuts=[CHUNK])
    get(tmp_path, remote(server, sha256=SHA256))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.requests[1] == ("a.zip", f"bytes={CHUNK}-")


def test_part_is_kept_between_runs(server, tmp_path):
    server.files["a.zip"] = Served(BODY, cuts=[CHUNK] + [0] * RETRIES)
    with pytest.raises(FetchError, match=f"{CHUNK} bytes are kept in .*a.zip.part"):
        get(tmp_path, remote(server))
    assert left(tmp_path) == {"a.zip.part", "a.zip.part.mark"}
    server.requests.clear()
    get(tmp_path, remote(server))
    assert server.requests == [("a.zip", f"bytes={CHUNK}-")]
    assert (tmp_path / "a.zip").read_bytes() == BODY and left(tmp_path) == {"a.zip"}


def test_file_that_changed_between_runs_is_not_glued_together(server, tmp_path):
    server.files["a.zip"] = Served(BODY[::-1], cuts=[CHUNK] + [0] * RETRIES)
    with pytest.raises(FetchError):
        get(tmp_path, remote(server))
    server.files["a.zip"] = Served(BODY, etag='"v2"')
    get(tmp_path, remote(server))
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_complete_part_needs_no_bytes(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    (tmp_path / "a.zip.part").write_bytes(BODY)
    get(tmp_path, remote(server, sha256=SHA256))  # 416, nothing after the end: from the start
    assert (tmp_path / "a.zip").read_bytes() == BODY and left(tmp_path) == {"a.zip"}
    (tmp_path / "b.zip.part").write_bytes(BODY)
    server.requests.clear()
    get(tmp_path, remote(server, "b.zip", bytes=len(BODY)))
    assert not server.requests


def test_part_longer_than_the_file_starts_over(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    (tmp_path / "a.zip.part").write_bytes(BODY + b"more")
    get(tmp_path, remote(server))
    assert (tmp_path / "a.zip").read_bytes() == BODY


# --- servers that refuse -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "after", ["0", "1", lambda: formatdate(time.time() + 1, usegmt=True)], ids=["now", "seconds", "date"]
)
def test_too_many_requests_waits_as_asked(server, tmp_path, after):
    value = after() if callable(after) else after
    server.files["a.zip"] = Served(BODY, statuses=[(429, {"Retry-After": value})])
    start = time.monotonic()
    get(tmp_path, remote(server))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    if value == "1":
        assert time.monotonic() - start >= 1


def test_too_long_a_wait_is_told(server, tmp_path):
    server.files["a.zip"] = Served(BODY, statuses=[(429, {"Retry-After": "7200"})])
    with pytest.raises(FetchError, match="asks to wait 7200 s"):
        get(tmp_path, remote(server))


def test_server_errors_are_tried_again_and_given_up(server, tmp_path):
    server.files["a.zip"] = Served(BODY, statuses=[(503, {}), (500, {}), (502, {})])
    get(tmp_path, remote(server))
    server.files["b.zip"] = Served(BODY, statuses=[(503, {})] * 9)
    server.requests.clear()
    with pytest.raises(FetchError, match=r"HTTP 503.*run the command again.*put it at .*b\.zip"):
        get(tmp_path, remote(server, "b.zip"))
    assert len(server.requests) == 1 + RETRIES


def test_missing_file_is_not_tried_again_and_the_others_come(server, tmp_path):
    server.files["b.zip"] = Served(BODY)
    with pytest.raises(FetchError, match="a.zip: HTTP 404: there is no such file"):
        get(tmp_path, remote(server), remote(server, "b.zip"))
    assert sorted(server.requests) == [("a.zip", None), ("b.zip", None)]
    assert left(tmp_path) == {"b.zip"}


def test_every_problem_is_listed(server, tmp_path):
    with pytest.raises(FetchError) as error:
        get(tmp_path, remote(server), remote(server, "b.zip"))
    assert "2 files are missing" in str(error.value)
    assert "a.zip: HTTP 404" in str(error.value) and "b.zip: HTTP 404" in str(error.value)


def test_web_page_in_place_of_the_file(server, tmp_path):
    server.files["a.zip"] = Served(b"<html>log in</html>", content_type="text/html; charset=utf-8")
    with pytest.raises(FetchError, match="a web page in place of the file"):
        get(tmp_path, remote(server))
    assert not (tmp_path / "a.zip").exists()


def test_no_network(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.zip"
    with pytest.raises(FetchError) as error:
        get(tmp_path, RemoteFile(name="a.zip", url=url))
    text = str(error.value)
    assert "refused" in text and "check the network" in text and str(tmp_path / "a.zip") in text


# --- wrong files ---------------------------------------------------------------------------------------


def test_announced_size_is_compared_before_the_body(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    with pytest.raises(FetchError, match="the server has 300000 bytes, the declaration says 12"):
        get(tmp_path, remote(server, bytes=12))
    assert not (tmp_path / "a.zip").exists()


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    with pytest.raises(FetchError, match=f"wrong md5: {MD5}, expected {'0' * 32}"):
        get(tmp_path, remote(server, md5="0" * 32))
    assert left(tmp_path) == set()


def test_wrong_file_that_is_here_is_moved_aside(server, tmp_path):
    server.files["a.zip"] = Served(BODY)
    (tmp_path / "a.zip").write_bytes(b"x" * len(BODY))
    get(tmp_path, remote(server, bytes=len(BODY), sha256=SHA256))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert (tmp_path / "a.zip.bad").read_bytes() == b"x" * len(BODY)


def test_verify_names_what_is_wrong(tmp_path):
    path = tmp_path / "a"
    file = RemoteFile(name="a", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert verify(path, file) == "not a file"
    path.write_bytes(b"abcd")
    assert verify(path, file) == "wrong size: 4 bytes, expected 3"
    path.write_bytes(b"abd")
    assert "wrong sha256" in (verify(path, file) or "")
    path.write_bytes(b"abc")
    assert verify(path, file) is None
    path.write_bytes(b"")
    assert verify(path, RemoteFile(name="a")) == "wrong size: empty"


@pytest.mark.parametrize("name", ["../a.zip", "/a.zip", "..", "b/a.zip"])
def test_names_stay_in_the_folder(server, tmp_path, name):
    with pytest.raises(FetchError, match="is not a file name"):
        get(tmp_path, RemoteFile(name=name, url=server.url))
    assert not server.requests


def test_disk_space_is_looked_at_first(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, fetch_http.SPARE_BYTES + 1000))
    server.files["a.zip"] = Served(BODY)
    with pytest.raises(FetchError, match=r"1 files still to fetch need 0\.00 GB"):
        get(tmp_path, remote(server, bytes=len(BODY)))
    assert not server.requests
    with pytest.raises(FetchError, match=r"a\.zip need"):  # size known from the answer alone
        get(tmp_path, remote(server))
    (tmp_path / "a.zip.part").write_bytes(BODY[:-500])  # only what is still to come counts
    get(tmp_path, remote(server, bytes=len(BODY)))


# --- Google Drive --------------------------------------------------------------------------------------


def drive(**fields: object) -> RemoteFile:
    return RemoteFile(name="d.zip", google_drive="ID123", **fields)


def test_google_drive_file_and_folder(tmp_path, monkeypatch):
    asked = []
    signatures = {name: inspect.signature(getattr(gdown, name)) for name in ("download", "download_folder")}

    def download(**options):
        signatures["download"].bind(**options)
        asked.append(options["id"])
        Path(options["output"]).write_bytes(BODY)

    def download_folder(**options):
        signatures["download_folder"].bind(**options)
        asked.append(options["id"])
        Path(options["output"]).mkdir()
        (Path(options["output"]) / "x").write_bytes(BODY)

    monkeypatch.setattr(gdown, "download", download)
    monkeypatch.setattr(gdown, "download_folder", download_folder)
    folder = RemoteFile(name="tree", google_drive="ID456", folder=True)
    get(tmp_path, drive(sha256=SHA256), folder)
    assert (tmp_path / "d.zip").read_bytes() == (tmp_path / "tree" / "x").read_bytes() == BODY
    get(tmp_path, drive(sha256=SHA256), folder)
    assert asked == ["ID123", "ID456"]


def test_google_drive_quota_is_explained(tmp_path, monkeypatch):
    def download(**_):
        raise gdown.exceptions.FileURLRetrievalError("Too many users have viewed or downloaded this file")

    monkeypatch.setattr(gdown, "download", download)
    with pytest.raises(FetchError) as error:
        get(tmp_path, drive())
    text = str(error.value)
    assert "Too many users" in text and "try again tomorrow" in text
    assert "https://drive.google.com/file/d/ID123/view" in text and str(tmp_path / "d.zip") in text


# --- Cityscapes ----------------------------------------------------------------------------------------

SECRET = "hunter2-secret"
PACKAGE = RemoteFile(name="gtFine_trainvaltest.zip", cityscapes=True)


@pytest.fixture
def site(monkeypatch):
    """The Cityscapes site behind requests.Session: login, list, checksum, package."""
    state = SimpleNamespace(password=SECRET, posted=[], cuts=[], ranges=[], md5=MD5)

    def answer(status=200, *, text="", json=None, body=b"", cut=None):
        made = requests.Response()
        made.status_code, made._content = status, text.encode()
        if json is not None:
            made.json = lambda: json

        def chunks(chunk_size=1):
            yield body[:cut] if cut is not None else body
            if cut is not None:
                raise requests.exceptions.ChunkedEncodingError("cut")

        made.iter_content = chunks
        made.close = lambda: None
        return made

    def session_get(self, url, **options):
        if "?list" in url:
            return answer(json=[{"name": PACKAGE.name, "packageID": 1, "size": "1MB", "thirdparty": "0"}])
        if "md5-sum" in url:
            return answer(text=f"{state.md5}  {PACKAGE.name}")
        if "file-handling" in url:
            asked = options.get("headers", {}).get("Range", "bytes=0-")
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            return answer(206, body=BODY[start:], cut=state.cuts.pop(0) if state.cuts else None)
        return answer()

    def session_post(self, url, data, **_):
        state.posted.append(data)
        return answer(302 if data["password"] == state.password else 200)

    monkeypatch.setattr(requests.Session, "get", session_get)
    monkeypatch.setattr(requests.Session, "post", session_post)
    monkeypatch.setenv(fetch_hosts.USERNAME, "me@example.org")
    monkeypatch.setenv(fetch_hosts.PASSWORD, SECRET)
    return state


def test_cityscapes_package_with_login_from_the_environment(site, tmp_path, capfd):
    site.cuts = [1000]
    get(tmp_path, PACKAGE)
    assert (tmp_path / PACKAGE.name).read_bytes() == BODY
    assert left(tmp_path) == {PACKAGE.name}
    assert site.posted[0]["username"] == "me@example.org" and len(site.posted) == 1
    assert site.ranges == ["bytes=0-", "bytes=1000-"]
    assert capfd.readouterr() == ("", "")


def test_damaged_cityscapes_package_starts_over_and_is_told(site, tmp_path):
    site.md5 = "0" * 32
    with pytest.raises(FetchError, match="MD5 sum"):
        get(tmp_path, PACKAGE)
    assert site.ranges == ["bytes=0-"] * (1 + RETRIES)  # never glued to the damaged one
    assert not (tmp_path / PACKAGE.name).exists()


def test_wrong_cityscapes_login_is_told_without_it(site, tmp_path, capfd):
    site.password = "another"
    with pytest.raises(FetchError, match="wrong user name or password") as error:
        get(tmp_path, PACKAGE)
    assert SECRET not in str(error.value) + "".join(capfd.readouterr())


def test_cityscapes_errors_never_carry_the_login(site, tmp_path, monkeypatch):
    def post(self, url, **_):
        raise requests.exceptions.ConnectionError(f"POST {url} username=me@example.org&password={SECRET}")

    monkeypatch.setattr(requests.Session, "post", post)
    with pytest.raises(FetchError, match=r"login failed: .*\*\*\*") as error:
        get(tmp_path, PACKAGE)
    assert SECRET not in str(error.value) and "me@example.org" not in str(error.value)
    assert all(path.is_dir() or SECRET.encode() not in path.read_bytes() for path in tmp_path.rglob("*"))


def test_cityscapes_without_any_login(site, tmp_path, monkeypatch):
    monkeypatch.delenv(fetch_hosts.USERNAME)
    with pytest.raises(FetchError, match=f"set both {fetch_hosts.USERNAME}"):
        get(tmp_path, PACKAGE)
    monkeypatch.delenv(fetch_hosts.PASSWORD)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(FetchError, match="run this in a terminal, or set"):
            get(tmp_path, PACKAGE)


def test_cityscapes_prompt_is_that_of_the_library(site, tmp_path, monkeypatch):
    from cityscapesscripts.download import downloader

    monkeypatch.delenv(fetch_hosts.USERNAME)
    monkeypatch.delenv(fetch_hosts.PASSWORD)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    answers = iter(["me@example.org", "n"])
    monkeypatch.setattr(downloader, "input", lambda _: next(answers))
    monkeypatch.setattr(downloader.getpass, "getpass", lambda _: SECRET)
    get(tmp_path / "down", PACKAGE)
    assert (tmp_path / "down" / PACKAGE.name).read_bytes() == BODY
    assert not (tmp_path / "none").exists()
