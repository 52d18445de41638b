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
