from __future__ import annotations

import os
import sys

import pytest
import torch

from panoda import machine


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


def test_the_processor_has_a_name() -> None:
    assert machine.processor().strip()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_counted_from_its_reset() -> None:
    large = torch.ones(2**26, dtype=torch.uint8)
    del large
    before = machine.reset_peak_memory()
    assert machine.peak_memory() - before < 2**25
    large = torch.ones(2**26, dtype=torch.uint8)
    assert 2**26 * 0.9 < machine.peak_memory() - before < 2**27
    del large
