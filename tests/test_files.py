import errno
import os

import pytest

from panoda.files import sha256_file, staged_directory, staged_file, write_json


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
