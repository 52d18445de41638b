import errno
from pathlib import Path

import pytest
import torch

from panoda.training.checkpoint import RESUME_FILE, load_resume, save_resume


def _parts(*, scaled: bool) -> dict:
    return {"model": torch.nn.Linear(2, 2), "scaler": torch.amp.GradScaler("cpu", enabled=scaled)}


@pytest.mark.parametrize("scaled", [True, False])
def test_a_run_resumes_at_another_precision(tmp_path, scaled):
    before, after = _parts(scaled=not scaled), _parts(scaled=scaled)
    save_resume(tmp_path, step=3, components=before, extra={})
    assert load_resume(tmp_path, after)[0] == 3
    assert torch.equal(before["model"].weight, after["model"].weight)


def test_a_full_disk_keeps_the_earlier_point(tmp_path, monkeypatch):
    parts = _parts(scaled=False)
    save_resume(tmp_path, step=1, components=parts, extra={})

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=f"disk full while writing .*{RESUME_FILE}"):
        save_resume(tmp_path, step=2, components=parts, extra={})
    assert load_resume(tmp_path, parts)[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == [RESUME_FILE]
