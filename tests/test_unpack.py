"""Unpacking: every way out of the folder, every kind of damage, and nothing twice."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from panoda.data.acquire import unpack as module
from panoda.data.acquire.unpack import unpack, unpacked_before
from panoda.system.errors import DataError

NOISE = np.random.default_rng(0).bytes(50_000)


def make_zip(path: Path, entries: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def make_tar(path: Path, entries: dict[str, bytes], *infos: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in infos:
            archive.addfile(info)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_special(path: Path, name: str, mode: int, data: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
        archive.writestr("good.txt", b"good")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones of the unpacker aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and module.MARKERS not in path.relative_to(folder).parts
    }


def reasons(result: module.Unpacked) -> dict[str, str]:
    return {entry.name: entry.reason for entry in result.bad}


# --- good archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_good_archive(tmp_path, mode):
    entries = {"a/b/c.bin": NOISE, "top.txt": b"x", "a/empty": b"", "./a/dot.txt": b"y"}
    make = (
        make_zip(tmp_path / "x", entries) if mode == "zip" else make_tar(tmp_path / "x", entries, mode=mode)
    )
    result = unpack(make, tmp_path / "out")
    assert tree(tmp_path / "out") == {
        "a/b/c.bin": NOISE,
        "top.txt": b"x",
        "a/empty": b"",
        "a/dot.txt": b"y",
    }
    assert (result.files, result.bytes, result.bad, result.already) == (4, len(NOISE) + 2, (), False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [module.MARKERS, "a", "top.txt"]


def test_archives_of_one_tree_are_merged(tmp_path):
    out = tmp_path / "out"
    unpack(make_zip(tmp_path / "1.zip", {"set/images/a": b"1", "set/readme": b"old"}), out)
    unpack(make_zip(tmp_path / "2.zip", {"set/labels/a": b"2", "set/readme": b"new"}), out)
    assert tree(out) == {"set/images/a": b"1", "set/labels/a": b"2", "set/readme": b"new"}


def test_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="in the way of what the archive brings"):
        unpack(make_zip(tmp_path / "1.zip", {"a": b"1"}), tmp_path / "out")
    assert unpacked_before(tmp_path / "1.zip", tmp_path / "out") is None


def test_modes_and_owners_are_not_applied(tmp_path):
    info = tarfile.TarInfo("run.sh")
    info.mode = 0o6777
    unpack(make_tar(tmp_path / "x.tar.gz", {}, info), tmp_path / "out")
    assert not stat.S_IMODE((tmp_path / "out" / "run.sh").stat().st_mode) & 0o6111


# --- the marker ----------------------------------------------------------------------------------------


def test_unpacked_once(tmp_path):
    archive, out = make_zip(tmp_path / "x.zip", {"a": b"1", "../b": b"2"}), tmp_path / "out"
    first = unpack(archive, out)
    (out / "a").write_bytes(b"changed by hand")
    again = unpack(archive, out)
    assert again.already and (again.files, again.bad) == (first.files, first.bad)
    assert tree(out) == {"a": b"changed by hand"}
    archive.unlink()
    assert unpacked_before(archive, out) is not None  # archives may be removed to save space


def test_another_archive_or_lost_files_are_unpacked_again(tmp_path):
    archive, out = make_zip(tmp_path / "x.zip", {"a": b"1"}), tmp_path / "out"
    unpack(archive, out)
    make_zip(archive, {"a": b"22"})
    assert not unpack(archive, out).already and tree(out) == {"a": b"22"}
    (out / "a").unlink()
    assert not unpack(archive, out).already and tree(out) == {"a": b"22"}
    marker = out / module.MARKERS / "x.zip.json"
    assert json.loads(marker.read_text())["files"] == 1
    marker.write_text("{")
    assert not unpack(archive, out).already


def test_what_a_killed_process_left_is_cleared(tmp_path):
    out = tmp_path / "out"
    (out / ".unpacking-x.zip" / "half").mkdir(parents=True)
    unpack(make_zip(tmp_path / "x.zip", {"a": b"1"}), out)
    assert tree(out) == {"a": b"1"} and not (out / ".unpacking-x.zip").exists()


# --- names ---------------------------------------------------------------------------------------------

BAD_NAMES = {
    "../evil": "leaves the folder",
    "a/../../evil": "leaves the folder",
    "a\\..\\..\\evil": "leaves the folder",
    "/etc/evil": "an absolute name",
    "C:\\evil": "an absolute name",
    "\\\\host\\evil": "an absolute name",
    f"{module.MARKERS}/y.zip.json": f"{module.MARKERS} is kept for markers",
    "n" * 300: "not a possible file name",
    "deep/" * 1500 + "evil": "not a possible file name",
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:12])
def test_names_that_leave_the_folder(tmp_path, name, kind):
    make = make_zip if kind == "zip" else make_tar
    out = tmp_path / "deep" / "out"
    result = unpack(make(tmp_path / "x", {name: b"evil", "good": b"good"}), out)
    assert list(reasons(result)) == [name] and reasons(result)[name].startswith(BAD_NAMES[name])
    assert tree(out) == {"good": b"good"}
    assert not list(tmp_path.rglob("evil"))


def test_name_with_a_zero_byte(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"goodXname": b"evil"})
    archive.write_bytes(archive.read_bytes().replace(b"goodXname", b"good\0name"))
    result = unpack(archive, tmp_path / "out")
    assert [entry.reason for entry in result.bad] == ["a name with a zero byte"]
    assert tree(tmp_path / "out") == {}


def test_second_entry_of_a_name_and_files_as_folders(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, data in (
                ("a", b"1"),
                ("a", b"2"),
                ("./a", b"3"),
                ("a/b", b"4"),
                ("c/d", b"5"),
                ("c", b"6"),
            ):
                archive.writestr(name, data)
    result = unpack(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"1", "c/d": b"5"}
    assert [(e.name, e.reason) for e in result.bad] == [
        ("a", "a second entry of that name"),
        ("./a", "a second entry of that name"),
        ("a/b", "lies in a folder that is a file"),
        ("c", "in place of a folder of that name"),
    ]


# --- links and devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "a/../../outside"])
def test_links_out_of_the_folder(tmp_path, kind, target):
    (tmp_path / "outside").write_text("secret")
    result = unpack(make_tar(tmp_path / "x.tar.gz", {}, special("l", kind, target)), tmp_path / "out")
    assert reasons(result) == {"l": f"a link to {target}, not a file"}
    assert tree(tmp_path / "out") == {}


def test_zip_link_out_of_the_folder(tmp_path):
    archive = zip_special(tmp_path / "x.zip", "l", stat.S_IFLNK | 0o777, b"/etc/passwd")
    result = unpack(archive, tmp_path / "out")
    assert reasons(result) == {"l": "a link, not a file"}
    assert tree(tmp_path / "out") == {"good.txt": b"good"}


def test_writing_through_a_link(tmp_path):
    # The classic: first a link to a folder outside, then a file "below" it.
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(special("l", tarfile.SYMTYPE, str(outside)))
        info = tarfile.TarInfo("l/evil")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    result = unpack(path, tmp_path / "out")
    assert not list(outside.iterdir())
    assert tree(tmp_path / "out") == {"l/evil": b"evil"} and list(reasons(result)) == ["l"]


def test_links_within_the_archive_are_named_too(tmp_path):
    links = [special("b/soft", tarfile.SYMTYPE, "../a/file"), special("b/hard", tarfile.LNKTYPE, "a/file")]
    result = unpack(make_tar(tmp_path / "x.tar", {"a/file": b"data"}, *links, mode="w"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/file": b"data"} and set(reasons(result)) == {"b/soft", "b/hard"}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_tar_devices(tmp_path, kind):
    result = unpack(make_tar(tmp_path / "x.tar.gz", {"a": b"1"}, special("dev", kind)), tmp_path / "out")
    assert reasons(result) == {"dev": "a device or other special file, not a file"}
    assert tree(tmp_path / "out") == {"a": b"1"}


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_zip_devices(tmp_path, mode):
    result = unpack(zip_special(tmp_path / "x.zip", "dev", mode | 0o666), tmp_path / "out")
    assert reasons(result) == {"dev": "a device or other special file, not a file"}
    assert tree(tmp_path / "out") == {"good.txt": b"good"}


# --- bombs ---------------------------------------------------------------------------------------------


def test_entry_that_is_longer_than_it_says(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"liar": bytes(100_000)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<L", 100_000), struct.pack("<L", 10)))
    result = unpack(archive, tmp_path / "out")
    assert list(reasons(result)) == ["liar"] and tree(tmp_path / "out") == {}


def test_sparse_tar_entry(tmp_path):
    header = bytearray(special("sparse", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # claims 8 GiB from no bytes at all
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    result = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert reasons(result) == {"sparse": "a sparse file, not a file"}


def test_disk_too_small(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    for make in (make_zip, make_tar):
        with pytest.raises(DataError, match="are free in .*out; make room"):
            unpack(make(tmp_path / "x", {"bomb": bytes(20 << 20)}), tmp_path / "out")
        assert tree(tmp_path / "out") == {} and not list((tmp_path / "out").glob(".unpacking*"))


def test_disk_full_while_writing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="disk full while writing .*out"):
        unpack(make_zip(tmp_path / "x.zip", {"a": NOISE}), tmp_path / "out")
    assert tree(tmp_path / "out") == {}


# --- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bad_crc_is_kept_out_and_the_rest_unpacked(tmp_path, method):
    archive = make_zip(tmp_path / "x.zip", {"a": b"1", "broken": NOISE, "z": b"2"}, method=method)
    data = bytearray(archive.read_bytes())
    data[data.index(NOISE[20_000:20_100]) + 5] ^= 0xFF  # noise is stored as it is even by deflate
    archive.write_bytes(data)
    result = unpack(archive, tmp_path / "out")
    assert list(reasons(result)) == ["broken"] and "CRC" in reasons(result)["broken"]
    assert tree(tmp_path / "out") == {"a": b"1", "z": b"2"} and result.files == 2


def test_broken_stream_and_encrypted_entries(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"text": b"words " * 5000, "z": b"2"})
    data = bytearray(archive.read_bytes())
    data[36:60] = b"\xff" * 24
    archive.write_bytes(data)
    assert list(reasons(unpack(archive, tmp_path / "out"))) == ["text"]

    locked = make_zip(tmp_path / "y.zip", {"locked": b"secret", "z": b"2"})
    data = bytearray(locked.read_bytes())
    data[6] |= 1  # the flag in the first entry's header, and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    locked.write_bytes(data)
    result = unpack(locked, tmp_path / "out2")
    assert list(reasons(result)) == ["locked"] and "is encrypted" in reasons(result)["locked"]


@pytest.mark.parametrize("kind", ["zip", "tar", "gz"])
def test_cut_off_archive_leaves_nothing(tmp_path, kind):
    entries = {"a": b"1", "b": NOISE, "c": NOISE}
    path = tmp_path / "x"
    make_zip(path, entries) if kind == "zip" else make_tar(
        path, entries, mode="w" if kind == "tar" else "w:gz"
    )
    for share in (0.3, 0.7):
        short = tmp_path / "short"
        short.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DataError, match="nothing was unpacked: remove it and fetch it again"):
            unpack(short, tmp_path / "out")
        assert tree(tmp_path / "out") == {}


def test_cut_between_two_tar_entries(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"a": bytes(512), "b": bytes(512)}, mode="w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="damaged or cut off"):
        unpack(path, tmp_path / "out")


def test_damaged_tar_header_is_not_the_end(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"a": b"1", "b": b"2", "c": b"3"}, mode="w")
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged or cut off"):
        unpack(path, tmp_path / "out")


def test_bad_check_sum_of_a_gzip(tmp_path):
    path = make_tar(tmp_path / "x.tar.gz", {"a": NOISE})
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        unpack(path, tmp_path / "out")


def test_not_an_archive(tmp_path):
    for name, data in {"t": b"just text", "e": b"", "g": gzip.compress(b"text")}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="not a complete, readable archive"):
            unpack(tmp_path / name, tmp_path / "out")
    with pytest.raises(DataError, match="no such file; fetch it first"):
        unpack(tmp_path / "none", tmp_path / "out")
