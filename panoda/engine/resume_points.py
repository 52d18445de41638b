"""Resume points: everything a killed stage needs to go on, written atomically, the last few of them kept.

They live in ``state_dir``, outside every DVC output, in a folder named by a fingerprint of the stage's
parameters, inputs and code: a change of any of these starts clean.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch

from panoda.models.core.checkpoint import check_finite
from panoda.models.core.errors import CheckpointError
from panoda.system.files import staged_file

log = logging.getLogger("panoda")
DAMAGE = (
    CheckpointError,
    OSError,
    RuntimeError,
    EOFError,
    KeyError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_NAME = re.compile(r"resume-(\d+)\.pt")


class Stateful(Protocol):
    """Anything with a state dict: modules, optimisers, schedulers, scalers, averaged models."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state back."""


def resume_points(folder: Path) -> dict[int, Path]:
    """Resume points of a folder: steps done -> file, the newest first."""
    found = {int(m[1]): path for path in folder.glob("resume-*.pt") if (m := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def save_resume(
    folder: Path | None,
    *,
    step: int,
    components: dict[str, Stateful],
    extra: dict[str, Any],
    keep: int = 2,
    write: bool = True,
) -> None:
    """Write a resume point: ``step`` optimiser steps are done.

    Args:
        extra: Plain values (numbers, strings, lists and dicts of them).
        keep: Points kept, this one included. Later ones were damaged, and are removed.
        write: False in processes that only take part in collecting the states of sharded components.

    Raises:
        OSError: disk full; the earlier resume points are kept.
    """
    if folder is None:
        return
    state = {"step": step, "components": {k: v.state_dict() for k, v in components.items()}, "extra": extra}
    if not write:
        return
    # Through memory: torch.save to a file hides a full disk behind a RuntimeError about positions.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with staged_file(folder / f"resume-{step:08d}.pt") as aside, aside.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # a machine that goes down must not leave a new name on old bytes
    points = resume_points(folder)
    kept = sorted((s for s in points if s <= step), reverse=True)[:keep]
    for number in set(points) - set(kept):
        points[number].unlink(missing_ok=True)


def load_resume(folder: Path | None, components: dict[str, Stateful]) -> tuple[int, dict[str, Any]]:
    """Restore the components in place from the newest resume point that is whole.

    A damaged one is passed over with a warning, a half-written one is removed.

    Returns:
        Steps already done (0 when there is nothing to resume) and the extra values.

    Raises:
        ValueError: every point is damaged.
    """
    # Of a process that was killed while it wrote one; a point of that step may never be written again.
    for left in folder.glob(".resume-*.tmp") if folder else ():
        left.unlink(missing_ok=True)
    points = list(resume_points(folder).values()) if folder else []
    problems = []
    for path in points:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at checksums
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"checksum of {broken}")
            state = torch.load(path, map_location="cpu", weights_only=True)
            step, saved, extra = int(state["step"]), state["components"], dict(state["extra"])
            for name, component in components.items():
                if isinstance(component, torch.nn.Module):  # one that is not finite leads nowhere either
                    check_finite(saved.get(name, {}), where=name)
        except DAMAGE as error:
            problems.append(f"{path}: resume point is damaged ({error})")
            continue
        if problems:
            log.warning("%s; going on from %s", "; ".join(problems), path.name)
        for name, component in components.items():
            if saved[name]:  # a scaler that was off has no state; the precision may change
                component.load_state_dict(saved[name])
        return step, extra
    if problems:
        raise ValueError(f"{'; '.join(problems)}; delete the folder {folder} to start clean")
    return 0, {}
