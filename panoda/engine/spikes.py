"""Loss spikes: steps whose loss stands far above those before it, with the samples they saw.

A value is judged by the median and the median absolute deviation (MAD) of the last ``WINDOW`` losses; 1.4826
times the MAD estimates the standard deviation of a normal distribution and outliers do not move it. Memory
is constant: the window, and the first ``LIMIT`` spikes of a run.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import pandas as pd

log = logging.getLogger("panoda")
WINDOW = 200
NEEDED = 50
"""Losses before any is judged."""
DEVIATIONS = 10.0
"""Estimated standard deviations above the median that make a spike."""
FLOOR = 0.01
"""Smallest deviation, as a share of the median: losses that hardly differ would all be spikes."""
LIMIT = 1000
COLUMNS = ("step", "loss", "median", "deviations", "samples")


class LossSpikes:
    """Judges one loss after the other; its state is part of a resume point.

    Attributes:
        rows: Spikes so far, at most ``LIMIT``: step (from 1), loss, median, deviations, samples.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, step: int, loss: float, samples: str) -> None:
        """Judge the finite ``loss`` of ``step`` (from 1) and take it into the window."""
        if len(self._recent) >= NEEDED and len(self.rows) < LIMIT:
            median = statistics.median(self._recent)
            spread = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
            deviations = (loss - median) / max(spread, FLOOR * abs(median), 1e-12)
            if deviations > DEVIATIONS:
                values = (step, loss, median, deviations, samples)
                self.rows.append(dict(zip(COLUMNS, values, strict=True)))
                log.warning(
                    "loss spike at step %d: %.4g, %.0f deviations above the median %.4g of %d steps before; "
                    "samples: %s",
                    *(step, loss, deviations, median, len(self._recent), samples),
                )
        self._recent.append(loss)

    def write(self, path: Path) -> None:
        """Write a CSV table; of no spikes, its header."""
        pd.DataFrame(self.rows, columns=list(COLUMNS)).to_csv(path, index=False, float_format="%.6g")

    def state_dict(self) -> dict[str, Any]:
        """Window and spikes."""
        return {"rows": list(self.rows), "recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.rows = list(state_dict["rows"])
        self._recent = deque(state_dict["recent"], maxlen=WINDOW)
