"""What the loop trains: a task says what a batch costs and what follows a step; methods build on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from panoda.engine.averaging import WeightAverage
from panoda.engine.resume_points import Stateful

if TYPE_CHECKING:
    from panoda.models.core.segmenter import Segmenter


class Task:
    """Base of every task: a model that is trained and nothing else.

    Attributes:
        trained: The module whose parameters the optimiser moves.
        average: Running mean of its weights, for methods that have one.
        constant_rate: (step, learning rate) from that step on; None = the schedule alone.
    """

    trained: Segmenter
    average: WeightAverage | None = None
    constant_rate: tuple[int, float] | None = None

    def batches(self, start_step: int) -> Iterator[Any]:
        """Batches from ``start_step`` on; batch k depends on the seed and k alone."""
        raise AttributeError(f"{type(self).__name__} has no batches")

    def losses(self, step: int, batch: Any) -> dict[str, Tensor]:
        """Named scalar losses of one step; ``loss/total`` is minimised.

        With accumulation it is called for every micro-batch, first without gradients.
        """
        raise AttributeError(f"{type(self).__name__} has no losses")

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Update what follows the model (teacher, prototypes, discriminator); more named values."""
        return {}

    def describe(self, batch: Any) -> str:
        """Sample ids of a batch, for error messages."""
        return ", ".join(batch["ids"])

    def components(self) -> dict[str, Stateful]:
        """Everything that must survive a restart, besides optimiser and scheduler."""
        return {"model": self.trained}

    def followers(self) -> list[Segmenter]:
        """Further models of the trained one's shape, which FSDP shards as it does that."""
        return []

    def result(self) -> Segmenter:
        """The model that the stage keeps."""
        return self.trained

    def finish(self) -> None:
        """What is left to do after the last step."""

    def metrics(self) -> dict[str, float]:
        """Values of the whole run, beside the last step's losses."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what belongs to the result besides the model."""
