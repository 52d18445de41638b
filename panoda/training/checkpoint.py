"""Resume points: everything a killed stage needs to go on, written atomically.

They live in ``state_dir``, outside every DVC output, in a folder named by a fingerprint of the stage's
parameters, inputs and code: a change of any of these starts clean.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Protocol

import torch

from panoda.files import staged_file

RESUME_FILE = "resume.pt"


class Stateful(Protocol):
    """Anything with a state dict: modules, optimisers, schedulers, scalers, averaged models."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state back."""


def save_resume(
    folder: Path | None, *, step: int, components: dict[str, Stateful], extra: dict[str, Any]
) -> None:
    """Write a resume point: ``step`` optimiser steps are done.

    Raises:
        OSError: disk full; the earlier resume point is kept.
    """
    if folder is None:
        return
    state = {"step": step, "components": {k: v.state_dict() for k, v in components.items()}, "extra": extra}
    # Through memory: torch.save to a file hides a full disk behind a RuntimeError about positions.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with staged_file(folder / RESUME_FILE) as aside:
        aside.write_bytes(buffer.getbuffer())


def load_resume(folder: Path | None, components: dict[str, Stateful]) -> tuple[int, dict[str, Any]]:
    """Restore the components in place.

    Returns:
        Steps already done (0 when there is nothing to resume) and the extra values.

    Raises:
        ValueError: the file is unreadable or belongs to other components.
    """
    path = folder / RESUME_FILE if folder else None
    if path is None or not path.exists():
        return 0, {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["components"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: resume point is unreadable ({error}); delete its folder to start clean"
        ) from error
    if set(saved) != set(components):
        raise ValueError(
            f"{path}: resume point holds {sorted(saved)}, this stage needs {sorted(components)}; "
            "delete its folder to start clean"
        )
    for name, component in components.items():
        if saved[name]:  # a gradient scaler that was off has no state; the precision may change in between
            component.load_state_dict(saved[name])
    return int(state["step"]), dict(state["extra"])
