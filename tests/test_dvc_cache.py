"""Where DVC keeps a second copy of what a stage makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prefect")
pytest.importorskip("dvc")

from flows import dvc_cache
from flows.dvc_cache import copy_of_outputs


@pytest.mark.parametrize(
    ("settings", "shares_blocks", "copied"),
    [
        ({}, False, ".dvc/cache"),
        ({}, True, None),
        ({"cache.type": "reflink,hardlink,copy"}, False, None),
        ({"cache.type": "copy", "cache.dir": "/elsewhere"}, True, "/elsewhere"),
    ],
)
def test_copies_are_where_dvc_would_make_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    shares_blocks: bool,
    copied: str | None,
) -> None:
    monkeypatch.setattr(dvc_cache, "_shares_blocks", lambda _: shares_blocks)
    (tmp_path / ".dvc").mkdir()
    lines = [f"    {key.removeprefix('cache.')} = {value}\n" for key, value in settings.items()]
    (tmp_path / ".dvc" / "config").write_text("[cache]\n" + "".join(lines))
    assert copy_of_outputs(tmp_path) == (None if copied is None else tmp_path / copied)


def test_of_a_folder_without_dvc_nothing_is_known(tmp_path: Path) -> None:
    assert copy_of_outputs(tmp_path) is None


def test_blocks_are_shared_where_cp_can(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    command = ["cp", "--reflink=always", "one", "two"]
    can = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert dvc_cache._shares_blocks(tmp_path) == (can and sys.platform == "linux")
