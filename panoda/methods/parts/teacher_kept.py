"""Tasks whose result is the mean teacher of what they train."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from panoda.engine.resume_points import Stateful
from panoda.engine.task import Task
from panoda.engine.teacher import Teacher
from panoda.models.core.segmenter import Segmenter


class TeacherKept(Task):
    """The teacher follows the student after each step, and is kept.

    Attributes:
        teacher: Set by the task; starts as the student.
    """

    teacher: Teacher

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The teacher follows the student."""
        self.teacher.update_parameters(self.trained)
        return {}

    def result(self) -> Segmenter:
        """The teacher."""
        return cast(Segmenter, self.teacher.module)

    def components(self) -> dict[str, Stateful]:
        """Student and teacher."""
        return {"model": self.trained, "teacher": self.teacher}

    def followers(self) -> list[Segmenter]:
        """The teacher."""
        return [cast(Segmenter, self.teacher.module)]
