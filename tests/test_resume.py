import errno
import os
import subprocess
import sys

import pytest
import torch

from panoda.engine.resume_points import load_resume, resume_points, save_resume


def _parts(*, scaled: bool = False) -> dict:
    return {"model": torch.nn.Linear(2, 2), "scaler": torch.amp.GradScaler("cpu", enabled=scaled)}


@pytest.mark.parametrize("scaled", [True, False])
def test_a_run_resumes_at_another_precision(tmp_path, scaled):
    before, after = _parts(scaled=not scaled), _parts(scaled=scaled)
    save_resume(tmp_path, step=3, components=before, extra={})
    assert load_resume(tmp_path, after)[0] == 3
    assert torch.equal(before["model"].weight, after["model"].weight)


def test_a_full_disk_keeps_the_earlier_points(tmp_path, monkeypatch):
    parts = _parts()
    for step in (1, 2):
        save_resume(tmp_path, step=step, components=parts, extra={})

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full while writing .*resume-00000003.pt"):
        save_resume(tmp_path, step=3, components=parts, extra={})
    assert load_resume(tmp_path, parts)[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume-00000001.pt", "resume-00000002.pt"]


def test_what_a_killed_writer_left_goes(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from panoda.engine.resume_points import save_resume
save_resume(Path(sys.argv[1]), step=4, components={}, extra={})
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
save_resume(Path(sys.argv[1]), step=7, components={}, extra={})
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode < 0
    assert len(list(tmp_path.iterdir())) == 2
    assert load_resume(tmp_path, {})[0] == 4
    save_resume(tmp_path, step=6, components={}, extra={})  # points by time come at other steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume-00000004.pt", "resume-00000006.pt"]


def test_the_last_few_points_are_kept(tmp_path):
    for step in (1, 5, 10, 100):
        save_resume(tmp_path, step=step, components=_parts(), extra={"at": step}, keep=3)
    assert list(resume_points(tmp_path)) == [100, 10, 5]
    assert load_resume(tmp_path, _parts()) == (100, {"at": 100})


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_weight(data: bytes) -> bytes:
    """torch.load alone takes this file."""
    weight = torch.full((2, 2), 0.123).numpy().tobytes()
    assert weight in data
    return data.replace(weight, b"\x00" + weight[1:])


@pytest.mark.parametrize("damage", [_cut, _flip_a_weight, lambda data: b""])
def test_a_damaged_newest_point_falls_back_to_the_one_before(tmp_path, caplog, damage):
    parts = _parts()
    save_resume(tmp_path, step=4, components=parts, extra={})
    old = parts["model"].weight.detach().clone()
    with torch.no_grad():
        parts["model"].weight.fill_(0.123)
    save_resume(tmp_path, step=8, components=parts, extra={})
    newest = resume_points(tmp_path)[8]
    newest.write_bytes(damage(newest.read_bytes()))
    again = _parts()
    assert load_resume(tmp_path, again)[0] == 4
    assert torch.equal(again["model"].weight, old)
    assert "resume-00000008.pt: resume point is damaged" in caplog.text
    assert "going on from resume-00000004.pt" in caplog.text
    save_resume(tmp_path, step=6, components=again, extra={})
    assert list(resume_points(tmp_path)) == [6, 4], "the damaged one must not win over newer whole ones"


def test_only_damaged_points_are_an_error(tmp_path):
    for step in (4, 8):
        save_resume(tmp_path, step=step, components=_parts(), extra={})
        resume_points(tmp_path)[step].write_bytes(b"half a file")
    with pytest.raises(ValueError, match="00000008.*damaged.*00000004.*damaged.*delete the folder"):
        load_resume(tmp_path, _parts())


def test_a_point_whose_weights_are_not_finite_is_passed_over(tmp_path, caplog):
    parts = _parts()
    save_resume(tmp_path, step=4, components=parts, extra={})
    name, model = next((n, p) for n, p in parts.items() if isinstance(p, torch.nn.Module))
    next(model.parameters()).data.view(-1)[0] = float("nan")
    save_resume(tmp_path, step=8, components=parts, extra={})
    assert load_resume(tmp_path, _parts())[0] == 4
    assert f"({name}: 1 of" in caplog.text and "NaN or infinite" in caplog.text
