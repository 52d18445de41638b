import errno
import os
from pathlib import Path

import pytest

from panoda.system.files import (
    one_name,
    read_text,
    read_yaml,
    sha256_file,
    staged_directory,
    staged_file,
    write_json,
)


def test_a_file_has_one_name_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    (tmp_path / "far/a.jpg").touch()
    (tmp_path / "photos/b.jpg").symlink_to("../far/a.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    wanted = tmp_path / "photos/b.jpg"  # a link keeps its name
    assert one_name(Path("b.jpg")) == one_name(Path("../photos/b.jpg")) == one_name(wanted) == wanted
    assert one_name(Path("../link/../a.jpg")) == tmp_path / "far/a.jpg"


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "value.json"
    write_json(path, {"b": 1})
    with pytest.raises(OSError, match="disk"), staged_file(path) as aside:
        aside.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == '{\n  "b": 1\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_an_error_leaves_the_old_folder(tmp_path):
    out = tmp_path / "out"
    with staged_directory(out) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), staged_directory(out) as folder:
        (folder / "two").write_text("2")
        raise KeyboardInterrupt
    assert [p.name for p in out.iterdir()] == ["one"]
    with staged_directory(out) as folder:
        (folder / "three").write_text("3")
    assert [p.name for p in out.iterdir()] == ["three"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("staged", [staged_file, staged_directory])
def test_a_full_disk_is_named_with_what_to_do(tmp_path, staged):
    with pytest.raises(OSError, match="disk full while writing .*thing.*free some space") as caught:
        with staged(tmp_path / "thing"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with staged_directory(out) as folder:
        (folder / "one").write_text("1")
    rename = os.replace

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise PermissionError(13, "refused")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), staged_directory(out):
        pass
    assert (out / "one").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_other_editors(tmp_path, encoding, end):
    path = tmp_path / "own.yaml"
    path.write_bytes(f"names:{end}- Straße{end}".encode(encoding))
    assert read_text(path) == "names:\n- Straße\n"
    assert read_yaml(path) == {"names": ["Straße"]}


def test_what_is_no_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("image\nStraße.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.csv: line 2: not UTF-8 .*; save the file as UTF-8"):
        read_text(path)
    path.write_bytes("image\n".encode("utf-16-be"))
    with pytest.raises(ValueError, match=r"list\.csv: zero bytes, so no text in UTF-8"):
        read_text(path)
