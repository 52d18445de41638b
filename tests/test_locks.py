"""Locks follow no link, and their folder is this user's alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from panoda.system.locks import file_lock, gpu_lock_path, is_locked, own_folder


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the shared temporary one."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_folder_of_locks_is_this_users_alone(shared: Path) -> None:
    folder = own_folder()
    assert folder == shared / f"panoda-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)  # as earlier versions made it
    assert own_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert gpu_lock_path("GPU-1/2").parent == folder


@pytest.mark.parametrize("planted", ["link", "file"])
def test_what_lies_in_its_place_is_named_and_left_alone(shared: Path, planted: str) -> None:
    place, victim = shared / f"panoda-{os.getuid()}", shared / "victim"
    victim.mkdir()
    place.symlink_to(victim) if planted == "link" else place.write_text("years of work")
    with pytest.raises(OSError, match=f"{place}: is no folder but a link or file.*set TMPDIR"):
        gpu_lock_path("GPU-1")
    assert list(victim.iterdir()) == [] and (planted == "link" or place.read_text() == "years of work")


def test_the_folder_of_another_user_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    (shared / f"panoda-{own + 1}").mkdir()
    with pytest.raises(OSError, match=f"is user {own}'s; locks need a folder of your own"):
        own_folder()


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim, lock = tmp_path / "thesis.txt", tmp_path / "gpu.lock"
    victim.write_text("years of work")
    lock.symlink_to(victim)
    with pytest.raises(OSError, match=f"{lock}: a link lies where a lock file is needed; remove it"):
        with file_lock(lock, what="GPU 0"):
            pytest.fail("held")
    with pytest.raises(OSError, match="a link lies"):
        is_locked(lock)
    assert victim.read_text() == "years of work"
    lock.unlink()
    lock.symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="a link lies"), file_lock(lock, what="GPU 0"):
        pytest.fail("held")
    assert not (tmp_path / "new").exists()


def test_a_lock_is_held_and_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "gpu.lock"
    assert not is_locked(lock) and not lock.exists()
    with file_lock(lock, what="GPU 0"):
        assert is_locked(lock) and lock.read_text() == f"{os.getpid()}\n"
    assert not is_locked(lock)
